"""The events of one request on their way from the engine's thread to the event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from reformer_core import Engine, Request
from reformer_core.events import DocumentReady, Event, Failed, Finished, Progress, Timings
from reformer_server import call_facts, tenants
from reformer_server.call_facts import Reading

if TYPE_CHECKING:
    from reformer_server.engine_thread import EngineThread

MAX_QUEUED_EVENTS = 64


class EventStream:
    """One request to the engine: submitted by `async with`, read in batches, cancelled on the way out if need be.

    On the engine's thread it is the request's Sink; on the event loop, everything else. It is full while
    `emitted - consumed` is at the bound; each of the two counters has one writer, so that no lock is needed.
    """

    def __init__(
        self, thread: "EngineThread", submit: "Callable[[Engine, EventStream], Request]", reading: Reading
    ) -> None:
        self._thread = thread
        self._submit = submit
        self._reading = reading
        self._facts = call_facts.current()
        self._queue: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._emitted = 0  # written on the engine's thread
        self._consumed = 0  # written on the event loop
        self._over = False
        self._closed = False
        self.request: Request | None = None  # written on the engine's thread
        self.owner = tenants.current().name

    # -- on the engine's thread

    def submit(self, engine: Engine) -> None:
        """Hands the request to the engine; raises what the engine has against it."""
        self.request = self._submit(engine, self)

    def ready(self) -> bool:
        """Whether the reader keeps up."""
        return self._emitted - self._consumed < MAX_QUEUED_EVENTS

    def emit(self, event: Event) -> None:
        """Takes one event of the engine."""
        if isinstance(event, Finished | Failed):
            self.request = None  # it has us as its sink: with all its tensors it would stay until a garbage collection
        if not isinstance(event, Progress):
            self._emitted += 1
        self._thread.hand_over(partial(self._deliver, event))

    # -- on the event loop

    async def batches(self) -> AsyncIterator[list[Event]]:
        """All events that have arrived, again and again, Finished last. Raises the error of a Failed."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch = list(self._queue)
            self._queue.clear()
            self._consume(batch)
            last = batch[-1]
            if isinstance(last, Failed):
                batch.pop()
            if batch:
                yield batch
            if isinstance(last, Failed):
                raise last.error
            if isinstance(last, Finished):
                return

    def fail(self, error: Exception) -> None:
        """Ends the stream with `error`, unless it is over."""
        if not self._over:
            self._deliver(Failed(error, Timings()))

    def _deliver(self, event: Event) -> None:
        self._thread.metrics.saw(event, self._reading)
        self._facts.saw(event, self._reading)
        self._over = self._over or isinstance(event, Finished | Failed)
        if self._closed:
            self._discard(event)
            return
        # Of several Progress in a row only the last counts, which keeps the queue bounded whatever the reader does.
        if isinstance(event, Progress) and self._queue and isinstance(self._queue[-1], Progress):
            self._queue.pop()
        self._queue.append(event)
        self._arrived.set()

    def _consume(self, batch: list[Event]) -> None:
        was_full = not self.ready()
        self._consumed += sum(not isinstance(event, Progress) for event in batch)
        if was_full:
            self._thread.wake()

    def _discard(self, event: Event) -> None:
        if isinstance(event, DocumentReady):  # nobody else would ever free it
            self._thread.post(lambda engine: event.document.close())

    async def __aenter__(self) -> Self:
        try:
            await self._thread.open(self)
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._closed = True
        while self._queue:
            self._discard(self._queue.popleft())
        self._thread.close(self, over=self._over)
