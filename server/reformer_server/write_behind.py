"""Documents on their way to the store: written behind the clients' backs, again and again until the store has them."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from weakref import WeakValueDictionary

import torch

from reformer_core import Document, Engine
from reformer_server.cache import CachedDocument, DocumentCache
from reformer_server.content import ContentKey
from reformer_server.engine_thread import EngineThread
from reformer_server.entries import Entry
from reformer_server.errors import (
    DocumentExistsError,
    EngineStoppedError,
    StoredDocumentDamagedError,
    StoreUnavailableError,
)
from reformer_server.metrics import Metrics
from reformer_server.store.data import Shape
from reformer_server.store_archive import StoreArchive

CONTENTS_AT_A_TIME = 2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0

logger = logging.getLogger(__name__)


class WriteBehind:
    """All entries that the store doesn't have yet. It is used on the event loop."""

    def __init__(
        self,
        engine: EngineThread,
        archive: StoreArchive,
        cache: DocumentCache,
        holds: Callable[[Entry], bool],
        lose: Callable[[Entry], None],
        metrics: Metrics,
    ) -> None:
        """`holds` tells whether an entry is still wanted; `lose` is told of one whose id is another replica's."""
        self._metrics = metrics
        self._engine, self._archive, self._cache, self._holds, self._lose = engine, archive, cache, holds, lose
        self._tasks: dict[Entry, asyncio.Task[None]] = {}
        self._writing: WeakValueDictionary[ContentKey, asyncio.Lock] = WeakValueDictionary()
        self._turns = asyncio.Semaphore(CONTENTS_AT_A_TIME)
        self._progress: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __len__(self) -> int:
        return len(self._tasks)

    def persist(self, entry: Entry) -> None:
        """Sees that the store gets it: its content, and then what its id stands for."""
        task = self._tasks.get(entry)
        if task is None or task.done():
            self._tasks[entry] = task = asyncio.create_task(self._persist(entry))
            task.add_done_callback(partial(self._forget, entry))

    async def next_written(self, timeout: float) -> bool:
        """Waits until one more content is in the store; False: none is on its way, or it takes too long."""
        if not self._tasks:
            return False
        done, _ = await asyncio.wait({self._progress}, timeout=timeout)
        return bool(done)

    async def drain(self) -> None:
        """Returns when the store has everything."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def until_written(self, entry: Entry) -> None:
        """Returns when the store has this one, or won't have it."""
        if (task := self._tasks.get(entry)) is not None:
            await asyncio.wait({task})

    def stop(self) -> int:
        """Gives up, and returns how many documents the store won't have."""
        for task in self._tasks.values():
            task.cancel()
        return len(self._tasks)

    def _forget(self, entry: Entry, task: asyncio.Task[None]) -> None:
        if self._tasks[entry] is task:  # else it has been prolonged since the task was over
            del self._tasks[entry]

    async def _persist(self, entry: Entry) -> None:
        pause = FIRST_PAUSE_SECONDS
        wanted = partial(self._holds, entry)
        while wanted():
            try:
                await self._write_content(entry.key, wanted)
                await self._archive.keep(entry, wanted)
                return
            except StoreUnavailableError:  # logged and counted; the document stays in memory meanwhile
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            except EngineStoppedError:
                return
            except DocumentExistsError:
                logger.warning("a document is dropped: another replica has stored another one under its id")
                self._lose(entry)
                return
            except Exception:
                self._metrics.documents_lost.labels("not_written").inc()
                logger.exception("a document can't be stored; it lives as long as this process")
                return

    async def _write_content(self, key: ContentKey, wanted: Callable[[], bool]) -> None:
        """Unless the store has it."""
        async with self._writing.setdefault(key, asyncio.Lock()), self._turns:
            cached = self._cache.get(key)
            if cached is None or not wanted():
                return
            with self._cache.using(cached):
                if not await self._is_there(cached):
                    await self._write(cached, wanted)
                elif not cached.stored:  # another replica has read the same content
                    cached.stored = True
                    self._archive.settle(key)
            self._progress.set_result(None)
            self._progress = asyncio.get_running_loop().create_future()

    async def _is_there(self, cached: CachedDocument) -> bool:
        try:
            manifest = await self._archive.find(cached.key)
        except StoredDocumentDamagedError:
            return False
        return manifest is not None and (manifest.has_scores or cached.document.scores is None)

    async def _write(self, cached: CachedDocument, wanted: Callable[[], bool]) -> None:
        """Slice by slice, each copied from the pages on the engine's thread; as soon as nobody wants it, no further."""
        document, shape = cached.document, Shape.of(cached.document)
        writer = await self._archive.writer(cached.key, document, cached.notes)
        try:
            for first in range(0, shape.pages, shape.slice_pages):
                pages = await self._engine.call(partial(_read_pages, document, first, first + shape.slice_pages))
                await self._archive.run(partial(writer.write, pages.numpy().data.cast("B")))
                if not wanted():
                    return
            await self._archive.run(writer.commit)
            cached.stored = True
            self._archive.settle(cached.key, written_bytes=shape.nbytes)
        finally:
            self._archive.run_later(writer.discard)


def _read_pages(document: Document, start: int, stop: int, engine: Engine) -> torch.Tensor:
    """A command for the engine's thread, which alone touches pages."""
    return document.read_pages(start, stop)
