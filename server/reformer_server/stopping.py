"""How a server ends without anybody losing anything: new documents first, then new calls, then what runs.

A client that has been told of a new document asks about it next, and once this server isn't ready, another one gets the
question. So this one stays ready until the store has what clients know of, but takes no new documents meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from reformer_server.chain import Admission
from reformer_server.engine_thread import EngineThread
from reformer_server.entries import Entry
from reformer_server.errors import DrainingError
from reformer_server.health import Health
from reformer_server.write_behind import WriteBehind

UNTOLD_SECONDS = 1.0
"""How long the store may take for a new document before its client is told of it nonetheless, by a server that goes on.
Meanwhile calls may begin to go to another server at any time: one that is back, or in the place of one that stops."""

logger = logging.getLogger(__name__)


class Stopping:
    """The way from serving to having nothing left to do."""

    def __init__(
        self,
        engine: EngineThread,
        admission: Admission,
        health: Health,
        write_behind: WriteBehind | None,
        grace_seconds: Callable[[], float],
    ) -> None:
        """`grace_seconds` is what all of it may take. `write_behind` is None where there is no store."""
        self._engine, self._admission, self._health, self._write_behind = engine, admission, health, write_behind
        self._grace_seconds = grace_seconds
        self._hurry = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    def hurry(self) -> None:
        """Ends the grace period."""
        self._hurry.set()

    def begin(self) -> asyncio.Task[None]:
        """No new documents from now on, and at the returned task's end no new calls: NOT_SERVING. Idempotent.

        Those that run go on. There is no way back. The store may take half the grace period for what clients know of;
        what it doesn't have then, other servers don't know.
        """
        if self._closing is None:
            self._admission.takes_documents = False
            self._closing = asyncio.create_task(self._close())
        return self._closing

    async def until_idle(self) -> None:
        """Begins, if that isn't done; then waits until nothing runs and the store has everything. Ends late calls."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._grace_seconds()
        await self.begin()
        if not await self._in_time(self._finish(), until - clock()):
            logger.warning("ending the calls that are still running")
            self._engine.post(lambda engine: engine.fail_all(DrainingError()))

    async def before_told(self, entry: Entry) -> None:
        """Comes before a client is told of a new document: any server that is asked next should find it stored."""
        if self._write_behind is not None:
            seconds = UNTOLD_SECONDS if self._admission.takes_documents else self._grace_seconds()
            await self._in_time(self._write_behind.until_written(entry), seconds)

    async def _close(self) -> None:
        if self._write_behind is not None:
            await self._in_time(self._write_behind.drain(), self._grace_seconds() / 2)
        await self._health.drain()
        self._admission.takes_calls = False

    async def _finish(self) -> None:
        await self._admission.until_empty()
        if self._write_behind is not None:
            await self._write_behind.drain()

    async def _in_time(self, work: Awaitable[None], seconds: float) -> bool:
        """Whether the work is over within so many seconds; no longer, if there is a hurry or the engine dies."""
        over = asyncio.ensure_future(work)
        hurried = asyncio.create_task(self._hurry.wait())
        died = asyncio.create_task(self._engine.ended.wait())
        tasks = (over, hurried, died)
        try:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return over.done()
        finally:
            for task in tasks:
                task.cancel()
