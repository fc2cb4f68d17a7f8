"""Work that several calls want at the same time: it is done once, and given up when the last of them has left."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from reformer_core.events import Progress

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")
Report = Callable[[Progress], None]


class Work(Generic[Result]):
    """One piece of work, for those who follow it."""

    def __init__(self) -> None:
        self.followers = 0
        self.task: asyncio.Task[Result]
        self._progress: Progress | None = None
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_failed(self) -> bool:
        """Whether it is over, and nothing came of it."""
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    def report(self, progress: Progress) -> None:
        """Tells all followers."""
        self._progress = progress
        self._news.set_result(None)
        self._news = asyncio.get_running_loop().create_future()

    async def progress(self) -> AsyncIterator[Progress]:
        """The latest progress whenever there is news, until the work is over."""
        seen = None
        while not self.task.done():
            if self._progress is not None and self._progress is not seen:
                seen = self._progress
                yield seen
            else:
                futures: set[asyncio.Future[Any]] = {self.task, self._news}
                await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)

    async def result(self) -> Result:
        """What came of it, or its error."""
        await asyncio.wait({self.task})  # a follower that is cancelled must not cancel it for the others
        return self.task.result()


class JointWork(Generic[Key, Result]):
    """All pieces of work of one kind that are under way, by what they are about."""

    def __init__(self, give_up: Callable[[Result], None]) -> None:
        """`give_up` takes a result that was the work's own: it is called when the last follower has left."""
        self._give_up = give_up
        self._work: dict[Key, Work[Result]] = {}

    @asynccontextmanager
    async def follow(
        self, key: Key, begin: Callable[[Report], Coroutine[Any, Any, Result]]
    ) -> AsyncIterator[Work[Result]]:
        """The work on this, begun if need be, and cancelled when its last follower has left.

        It has no deadline of its own, for each follower has another: one that is late is cancelled, and so leaves.
        """
        work = self._work.get(key)
        if work is None or work.has_failed:  # those who still follow what failed don't matter to this one
            work = self._work[key] = Work()
            work.task = asyncio.create_task(begin(work.report))
        work.followers += 1
        try:
            yield work
        finally:
            work.followers -= 1
            if work.followers == 0:
                if self._work.get(key) is work:
                    del self._work[key]
                self._end(work)

    def _end(self, work: Work[Result]) -> None:
        if not work.task.done():
            work.task.cancel()
        elif not work.has_failed:
            self._give_up(work.task.result())
