"""The one thread that touches the engine: commands in, events out, one hand-over to the event loop a turn."""

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Any, TypeVar

from reformer_core import Engine, EngineLoad, Request
from reformer_core.errors import OutOfMemoryError, QueueFullError, device_is_lost
from reformer_core.waiting import may_wait
from reformer_server.call_facts import Reading
from reformer_server.errors import EngineStoppedError
from reformer_server.events import EventStream
from reformer_server.metrics import Metrics

T = TypeVar("T")
Command = Callable[[Engine], object]

PARKED_POLL_SECONDS = 0.1  # how late the deadline of a request that waits for its reader is noticed

logger = logging.getLogger(__name__)


class EngineThread:
    """Owns the engine; `build` makes it, on its thread.

    Everything public is called on the event loop, except `hand_over` (engine's thread) and `wake` (any). If the engine
    raises out of a turn, that is a bug or a lost device: whatever runs ends with EngineStoppedError, `ended` is set and
    `error` holds why; the process is expected to exit.
    """

    def __init__(self, build: Callable[[], Engine], metrics: Metrics, max_waiting: int) -> None:
        self._build, self._max_waiting = build, max_waiting
        self.metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Command] = deque()
        self._outbox: list[Callable[[], None]] = []
        self._awake = threading.Event()
        self._stopping = False
        self._streams: set[EventStream] = set()
        self._answers: set[asyncio.Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._load: EngineLoad | None = None
        self._submitting: Counter[Hashable] = Counter()  # requests on their way to the engine, by owner
        self.make_room: Callable[[int], Awaitable[bool]] = _no_room
        """Frees at least some of so many bytes, if it can, and says whether it could."""
        self.seconds_until_room: Callable[[], float] = lambda: 1.0
        """When some memory will be free, as far as can be known."""
        self.turns, self.busy_seconds = 0, 0.0
        """Turns that are over, and what those took that did something. Any thread may look."""
        self.ended = asyncio.Event()
        self.error: BaseException | None = None

    @property
    def load(self) -> EngineLoad:
        """How busy the engine was after its latest turn. Any thread may ask."""
        assert self._load is not None, "start() was not awaited"
        return self._load

    # -- life

    async def start(self) -> None:
        """Builds the engine. Raises what building it raised."""
        self._thread.start()
        try:
            await self.call(lambda engine: None)
        except EngineStoppedError as stopped:
            raise self.error or stopped from None

    async def stop(self) -> None:
        """Ends the thread after its current turn; what still runs ends with EngineStoppedError."""
        self._stopping = True
        self.wake()
        if self._thread.is_alive():
            await self.ended.wait()
            self._thread.join()

    # -- requests and commands

    def request(self, submit: Callable[[Engine, EventStream], Request], reading: Reading = "prefill") -> EventStream:
        """A request for `async with`; `submit` runs on the engine's thread, with the stream as the request's sink."""
        return EventStream(self, submit, reading)

    async def open(self, stream: EventStream) -> None:
        """Submits the stream's request, if need be after making room; raises what the engine has against it."""
        self.check_queue(stream.owner)
        self._streams.add(stream)
        while True:
            try:
                self._submitting[stream.owner] += 1
                return await self.call(stream.submit)
            except OutOfMemoryError as error:
                missing_bytes = error.needed_bytes - error.free_bytes
                if not error.fits_when_idle or not await self.make_room(missing_bytes):
                    error.retry_seconds = self.seconds_until_room()
                    raise
            finally:
                self._submitting -= Counter({stream.owner: 1})  # which forgets owners that have nothing on their way

    def check_queue(self, owner: Hashable) -> None:
        """Raises QueueFullError at once if the engine would, once it has finished its turn."""
        load = self.load
        counts = self._submitting + Counter(load.waiting_by_owner)
        if not may_wait(counts, owner, self._max_waiting):
            raise QueueFullError(load.waiting, load.retry_seconds)

    def close(self, stream: EventStream, *, over: bool) -> None:
        """Lets go of the stream, and cancels its request unless it is over."""
        self._streams.discard(stream)
        if not over:
            self.post(partial(self._cancel, stream, time.monotonic()))

    async def call(self, command: Callable[[Engine], T]) -> T:
        """Runs `command` on the engine's thread; returns or raises what it did, or raises EngineStoppedError.

        If it finds that the device is lost, the engine ends.
        """
        if self.ended.is_set():
            raise EngineStoppedError
        answer: asyncio.Future[T] = self._loop.create_future()
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        self.post(partial(_run_and_answer, command, answer, self.hand_over))
        return await answer

    def post(self, command: Command) -> None:
        """Runs `command` on the engine's thread, in the order of the calls. It must not raise."""
        self._inbox.append(command)
        self.wake()

    def wake(self) -> None:
        """There is something to do: a command, or room in a stream that was full."""
        self._awake.set()

    def hand_over(self, callback: Callable[[], None]) -> None:
        """Runs `callback` on the event loop after this turn."""
        self._outbox.append(callback)

    # -- on the engine's thread

    def _run(self) -> None:
        try:
            engine = self._build()
            self._load = engine.load()
            while not self._stopping:
                self._turn(engine)
        except BaseException as error:
            if self._load is not None:  # else there never was one, and `start` raises the error
                logger.critical("the engine died", exc_info=error)
            self.error = error
        finally:
            self._loop.call_soon_threadsafe(self._end)

    def _turn(self, engine: Engine) -> None:
        # Cleared first: whatever is announced from here on ends the wait below.
        self._awake.clear()
        while self._inbox:
            self._inbox.popleft()(engine)
        began = time.monotonic()
        worked = engine.step()
        self.turns += 1
        if worked:
            self.busy_seconds += time.monotonic() - began
        self._load = load = engine.load()
        if self._outbox:
            self._loop.call_soon_threadsafe(_run_all, self._outbox)
            self._outbox = []
        if not worked and not self._inbox:
            self._awake.wait(PARKED_POLL_SECONDS if load.running or load.waiting else None)

    def _cancel(self, stream: EventStream, asked: float, engine: Engine) -> None:
        request = stream.request
        if request is None or request.phase == "done":
            return
        phase = request.phase
        engine.cancel(request)
        self.metrics.cancelled(phase, time.monotonic() - asked)

    # -- back on the event loop

    def _end(self) -> None:
        _run_all(self._outbox)
        for answer in list(self._answers):
            _fail(answer, EngineStoppedError())
        for stream in list(self._streams):
            stream.fail(EngineStoppedError())
        self.ended.set()


async def _no_room(nbytes: int) -> bool:
    return False


def _run_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _run_and_answer(
    command: Callable[[Engine], T],
    answer: "asyncio.Future[T]",
    hand_over: Callable[[Callable[[], None]], None],
    engine: Engine,
) -> None:
    try:
        result = command(engine)
    except Exception as error:
        hand_over(partial(_fail, answer, error))
        if device_is_lost(error):
            raise
    else:
        hand_over(partial(_settle, answer, result))


def _settle(answer: "asyncio.Future[T]", result: T) -> None:
    if not answer.done():  # else its caller was cancelled
        answer.set_result(result)


def _fail(answer: "asyncio.Future[Any]", error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
