"""Makes blocking objects of async ones: an event loop on a thread, and wrappers that keep the methods' signatures."""

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

from reformer_client.errors import CancelledError
from reformer_client.streams import AsyncStream

P = ParamSpec("P")
R = TypeVar("R")
Async = TypeVar("Async")
AnyAsyncStream = TypeVar("AnyAsyncStream", bound=AsyncStream[Any, Any])
Item = TypeVar("Item")

Inbox = SimpleQueue[object]
"""Callbacks for the thread that waits, and a mark for the end of what it waits for."""

POLL_SECONDS = 1.0
"""How often a waiting thread looks whether there still is something to wait for."""

END_SECONDS = 10.0
"""How long a call that was interrupted may take to end: it is told at once, but the machine may be busy."""

LAST_EVENTS_SECONDS = 0.05
"""For gRPC to tell all of calls that were cut; what it tells a closed loop, the loop of another client complains of."""


class Portal:
    """An event loop on a thread of its own, on which other threads have coroutines run.

    It ends with `close()`, with the last reference to it, or with the interpreter; `at_end` is awaited then.
    """

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = (
            concurrent.futures.Future()
        )
        # The thread must not refer to the portal, which would then never be collected.
        self._thread = threading.Thread(
            target=lambda: asyncio.run(_serve(started, at_end)), name="reformer-client", daemon=True
        )
        self._thread.start()
        self._loop, stop = started.result()
        self.close = weakref.finalize(self, _stop, self._thread, self._loop, stop)

    def run(self, start: Callable[[], Awaitable[R]], inbox: Inbox) -> R:
        """Waits for what `start` returns; meanwhile calls, on the waiting thread, what is put into the inbox."""
        if not self.close.alive:
            raise RuntimeError("the client is closed")
        call = _Call(start, self._loop)
        done = object()
        call.outcome.add_done_callback(lambda _: inbox.put(done))
        try:
            self._loop.call_soon_threadsafe(call.begin)
            for callback in self._callbacks(inbox, until=done):
                callback()
        except BaseException:  # a callback failed, or Ctrl-C
            with contextlib.suppress(RuntimeError, Empty):  # the loop is closed, and nothing runs
                self._loop.call_soon_threadsafe(call.cancel)
                # What comes next, such as closing the stream, must not meet it still running.
                call.ended.get(timeout=END_SECONDS)
            raise
        try:
            if call.outcome.cancelled() or not call.outcome.done():
                raise CancelledError("the client was closed while the call was running")
            return call.outcome.result()
        finally:
            del call  # an error refers to this frame, and the call to the error

    def _callbacks(self, inbox: Inbox, until: object) -> Iterator[Callable[[], object]]:
        """What is put into the inbox, until the mark is; or until the loop ends, which may have overlooked the call."""
        while True:
            try:
                item = inbox.get(timeout=POLL_SECONDS)
            except Empty:
                if not self._thread.is_alive():
                    return
                continue
            if item is until:
                return
            if callable(item):  # a mark is that of an earlier, interrupted wait
                yield item


class _Call(Generic[R]):
    """A task, and its outcome for another thread. All methods run on the loop: Ctrl-C, which may hit the other thread
    anywhere, must not leave a coroutine that nobody awaits.
    """

    def __init__(self, start: Callable[[], Awaitable[R]], loop: asyncio.AbstractEventLoop) -> None:
        self.outcome: concurrent.futures.Future[R] = concurrent.futures.Future()
        self.ended = ended = SimpleQueue[None]()
        # No cycle: the call holds a stream, which ends at once when nothing else refers to it any more.
        self.outcome.add_done_callback(lambda _: ended.put(None))
        self._start = start
        self._loop = loop
        self._task: asyncio.Task[R] | None = None

    def begin(self) -> None:
        self._task = self._loop.create_task(_awaited(self._start))
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        if self._task is None:  # interrupted before it began
            self.outcome.cancel()
        else:
            self._task.cancel()

    def _end(self, task: asyncio.Task[R]) -> None:
        self._task = None
        if task.cancelled():
            self.outcome.cancel()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


async def _awaited(start: Callable[[], Awaitable[R]]) -> R:
    return await start()


async def _serve(
    started: "concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]",
    at_end: Callable[[], Awaitable[None]],
) -> None:
    stop = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), stop))
    await stop.wait()
    running = asyncio.all_tasks() - {asyncio.current_task()}
    await at_end()
    if running:  # calls, which end by themselves now
        await asyncio.wait(running, timeout=END_SECONDS)
        await asyncio.sleep(LAST_EVENTS_SECONDS)


def _stop(thread: threading.Thread, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # it ended by itself
        loop.call_soon_threadsafe(stop.set)
    if threading.current_thread() is not thread:  # else the garbage collector happened to run there
        thread.join()


class Facade(Generic[Async]):
    """A blocking view of an async object: its methods are made by `blocking` and `streaming`."""

    def __init__(self, portal: Portal, wrapped: Async, inbox: Inbox | None = None) -> None:
        self._portal = portal
        self._wrapped = wrapped
        self._inbox = inbox  # of a stream, whose callbacks come while its items are waited for


AnyFacade = TypeVar("AnyFacade", bound=Facade[Any])


@overload
def blocking(method: Callable[Concatenate[Any, P], Awaitable[R]]) -> Callable[Concatenate[Any, P], R]: ...
@overload
def blocking(
    method: Callable[Concatenate[Any, P], Awaitable[Async]], facade: Callable[[Portal, Async], AnyFacade]
) -> Callable[Concatenate[Any, P], AnyFacade]: ...
def blocking(
    method: Callable[Concatenate[Any, P], Awaitable[Any]], facade: Callable[[Portal, Any], Any] | None = None
) -> Callable[Concatenate[Any, P], Any]:
    """The method as one that waits; its result, if it is an async object, behind its facade."""

    @functools.wraps(method)
    def wrapper(self: Facade[Any], /, *args: Any, **kwargs: Any) -> Any:
        inbox: Inbox = self._inbox or SimpleQueue()
        start = functools.partial(method, self._wrapped, *args, **_with_callback(kwargs, inbox))
        result = self._portal.run(start, inbox)
        return result if facade is None else facade(self._portal, result)

    return wrapper


def streaming(
    method: Callable[Concatenate[Any, P], AnyAsyncStream],
    facade: Callable[[Portal, AnyAsyncStream, Inbox], AnyFacade],
) -> Callable[Concatenate[Any, P], AnyFacade]:
    """The method as one that returns a blocking stream."""

    @functools.wraps(method)
    def wrapper(self: Facade[Any], /, *args: Any, **kwargs: Any) -> AnyFacade:
        inbox: Inbox = SimpleQueue()

        async def make() -> AnyAsyncStream:  # on the loop, to which all of gRPC is bound
            return method(self._wrapped, *args, **_with_callback(kwargs, inbox))

        return facade(self._portal, self._portal.run(make, SimpleQueue()), inbox)

    return wrapper


def _with_callback(kwargs: dict[str, Any], inbox: Inbox) -> dict[str, Any]:
    """The arguments with an `on_progress` that runs on the user's thread, where it may block, or call the client."""
    if (on_progress := kwargs.get("on_progress")) is None:
        return kwargs
    return {**kwargs, "on_progress": lambda progress: inbox.put(functools.partial(on_progress, progress))}


async def _next_or_none(stream: AsyncStream[Any, Any]) -> Any:
    return await anext(stream, None)


class Stream(Facade[AnyAsyncStream], Generic[AnyAsyncStream, Item]):
    """A blocking stream: an iterator and a context manager; leaving it early cancels its call."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        item = self._next()
        if item is None:
            raise StopIteration
        return self._present(item)

    def _present(self, item: Any) -> Item:
        return cast(Item, item)

    close = blocking(AsyncStream.aclose)
    _next = blocking(_next_or_none)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
