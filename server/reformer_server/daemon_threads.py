"""Threads that never keep the process from ending, whatever they wait for: a disk may hang for ever."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(Executor):
    """Like a ThreadPoolExecutor, whose threads are waited for when the interpreter ends."""

    def __init__(self, number: int, name: str) -> None:
        self._work = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True) for i in range(number)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs it some time; after `shutdown` it is cancelled."""
        future: Future[T] = Future()
        if self._closed:
            future.cancel()
        else:
            self._work.put((future, partial(work, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes nothing new; see Executor."""
        self._closed = True
        while cancel_futures and not self._work.empty():
            if (item := self._work.get()) is not None:
                item[0].cancel()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 -- whoever waits for it gets it
                future.set_exception(error)
            else:
                future.set_result(result)
