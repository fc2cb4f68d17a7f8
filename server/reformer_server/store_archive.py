"""The archive that keeps documents in a store. Its calls block: threads run them, one after the other for each id."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from reformer_core import Document
from reformer_server.archive import PATIENCE_SECONDS, Archive
from reformer_server.content import ContentKey, DocumentName
from reformer_server.daemon_threads import DaemonThreads
from reformer_server.entries import Entry
from reformer_server.errors import (
    DocumentExistsError,
    StoredDocumentDamagedError,
    StoreFullError,
    StoreUnavailableError,
)
from reformer_server.metrics import Metrics
from reformer_server.store.data import DataReader
from reformer_server.store.document_store import ContentWriter, DocumentStore
from reformer_server.store.housekeeping import Housekeeping, Usage
from reformer_server.store.manifest import ContentManifest, DocumentRecord, ModelIdentity

THREADS = 4
SWEEP_SECONDS = 10.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


class StoreArchive(Archive):
    """Keeps documents in a store."""

    keeps = True

    def __init__(self, model: ModelIdentity, store: DocumentStore, quota_bytes: int | None, metrics: Metrics) -> None:
        super().__init__(model)
        self._store, self._metrics = store, metrics
        self._housekeeping = Housekeeping(store, quota_bytes)
        self._threads = DaemonThreads(THREADS, "store")
        self._locks: WeakValueDictionary[DocumentName, asyncio.Lock] = WeakValueDictionary()
        self._turns: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[[], T], *, patience: float | None = None) -> T:
        """Runs what blocks on one of the store's threads.

        Raises StoreUnavailableError, also if it takes longer than `patience` seconds; None: however long it takes.
        """
        try:
            async with asyncio.timeout(patience):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            raise self._no_answer(patience) from None
        except StoreUnavailableError as error:
            self._note(error)
            raise
        except StoredDocumentDamagedError:
            self._metrics.documents_lost.labels("damaged").inc()
            raise

    def run_later(self, work: Callable[[], object]) -> None:
        """The same, and nobody waits for it."""
        self._threads.submit(work)

    @property
    def usage(self) -> Usage:
        return self._housekeeping.usage

    async def records(self, tenant: str) -> Sequence[DocumentRecord]:
        return await self.run(lambda: self._store.records(tenant))

    async def record(self, name: DocumentName, *, patience: float = PATIENCE_SECONDS) -> DocumentRecord | None:
        return await self._in_turn(name, lambda: self.run(lambda: self._store.record(*name)), patience)

    async def keep(self, entry: Entry, wanted: Callable[[], bool]) -> None:
        async def keep() -> None:
            written = None
            if not entry.stored:
                await self._join(entry)
            while wanted() and written != entry.expire_time:  # a lease can be prolonged meanwhile
                written = entry.expire_time
                await self.run(partial(self._store.keep, self.record_of(entry)))
            if wanted():
                entry.stored = True

        await self._in_turn(entry.name, keep)

    async def _join(self, entry: Entry) -> None:
        """Takes over what another replica has been asked for under this id. Raises DocumentExistsError.

        Replicas that write at the same moment both get through; they agree as soon as they look again.
        """
        try:
            there = await self.run(lambda: self._store.record(*entry.name))
        except StoredDocumentDamagedError:
            return
        if there is None or there.expire_time <= time.time() or not self.is_ours(there):
            return
        if self.key_of(there) != entry.key:
            raise DocumentExistsError(entry.name.document_id)
        if there.create_time != entry.create_time:  # else it is our own, whose lease may have been shortened since
            entry.create_time = there.create_time
            entry.expire_time = max(entry.expire_time, there.expire_time)
            entry.has_scores = entry.has_scores or there.has_scores

    async def forget(self, name: DocumentName) -> None:
        async def forget() -> None:
            await self.run(lambda: self._store.forget(*name))
            self._housekeeping.forgotten(*name)

        await self._in_turn(name, forget)

    async def promise(self, key: ContentKey, nbytes: int) -> None:
        with suppress(StoreUnavailableError):  # then it stays in memory until the store is back
            try:
                await self._promise(key, nbytes)
            except StoreFullError:
                await self.run(self._housekeeping.sweep, patience=PATIENCE_SECONDS)  # some may be gone since
                await self._promise(key, nbytes)

    async def _promise(self, key: ContentKey, nbytes: int) -> None:
        """Nothing is awaited once it is promised: a caller that is cancelled has no promise."""
        disk_bytes = await self.run(lambda: self._store.blobs.free_bytes, patience=PATIENCE_SECONDS)
        self._housekeeping.promise(self.identity(key).digest, nbytes, disk_bytes)

    def settle(self, key: ContentKey, *, written_bytes: int = 0) -> None:
        self._housekeeping.settle(self.identity(key).digest, written_bytes=written_bytes)

    async def find(self, key: ContentKey) -> ContentManifest | None:
        return await self.run(lambda: self._store.find(self.identity(key)), patience=PATIENCE_SECONDS)

    async def drop(self, manifest: ContentManifest) -> None:
        await self.run(lambda: self._store.drop(manifest), patience=PATIENCE_SECONDS)

    async def reader(self, manifest: ContentManifest) -> DataReader:
        """Begins to read a content. Raises StoredDocumentDamagedError."""
        return await self.run(lambda: self._store.reader(manifest), patience=PATIENCE_SECONDS)

    async def writer(self, key: ContentKey, document: Document, notes: tuple[str, ...]) -> ContentWriter:
        """Begins to write a content."""
        return await self.run(lambda: self._store.writer(self.identity(key), document, notes))

    async def keep_house(self) -> None:
        while True:
            with suppress(StoreUnavailableError):  # which is logged
                await self.run(self._housekeeping.sweep)
            await asyncio.sleep(SWEEP_SECONDS)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_turn(
        self, name: DocumentName, work: Callable[[], Coroutine[Any, Any, T]], patience: float = PATIENCE_SECONDS
    ) -> T:
        """What is done about one id: one after the other, and each to its end.

        A thread can't be called off. So a caller that is cancelled leaves at once, but the next one waits.
        """

        async def take_turn() -> T:
            async with self._locks.setdefault(name, asyncio.Lock()):
                return await work()

        task = asyncio.create_task(take_turn())
        self._turns.add(task)
        task.add_done_callback(self._forget_turn)
        try:
            async with asyncio.timeout(patience):
                return await asyncio.shield(task)
        except TimeoutError:
            raise self._no_answer(patience) from None

    def _forget_turn(self, task: "asyncio.Task[Any]") -> None:
        self._turns.discard(task)
        if not task.cancelled():
            task.exception()  # its caller was told, or has left

    def _no_answer(self, seconds: float | None) -> StoreUnavailableError:
        error = StoreUnavailableError(self._store.blobs.url, f"no answer within {seconds} s")
        self._note(error)
        return error

    def _note(self, error: StoreUnavailableError) -> None:
        self._metrics.store_errors.inc()
        logger.warning("store %s: %s", error.url, error.reason)
