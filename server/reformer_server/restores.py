"""Documents that come back from the store: read on its threads, written into pages by the engine, slice by slice."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch

from reformer_server.archive import PATIENCE_SECONDS, Archive
from reformer_server.cache import CachedDocument, DocumentCache
from reformer_server.content import ContentKey
from reformer_server.document_requests import obtain_document
from reformer_server.engine_thread import EngineThread
from reformer_server.errors import StoredDocumentDamagedError, StoreUnavailableError
from reformer_server.joint import JointWork, Report, Work
from reformer_server.metrics import Metrics
from reformer_server.served_model import ServedModel
from reformer_server.store.data import DataReader
from reformer_server.store_archive import StoreArchive

MOST_SLICES = 4  # that have arrived and wait for the engine: 32 MiB


class ArrivingPages:
    """A PageSource that is filled on the event loop and emptied on the engine's thread."""

    def __init__(self, engine: EngineThread) -> None:
        self._engine = engine
        self._slices: deque[torch.Tensor] = deque()
        self._room = asyncio.Event()
        self._error: Exception | None = None

    def take(self) -> torch.Tensor | None:
        """The engine's thread asks for the next slice."""
        if self._error is not None:
            raise self._error
        self._engine.hand_over(self._room.set)
        return self._slices.popleft() if self._slices else None

    async def fill(self, archive: StoreArchive, reader: DataReader) -> None:
        """Reads ahead, a few slices, once the request has begun; what goes wrong is told to the engine."""
        slices = reader.slices()
        await self._room.wait()
        try:
            while (pages := await archive.run(lambda: next(slices, None), patience=PATIENCE_SECONDS)) is not None:
                while len(self._slices) >= MOST_SLICES:
                    self._room.clear()
                    if len(self._slices) >= MOST_SLICES:
                        await self._room.wait()
                self._slices.append(pages)
                self._engine.wake()
        except Exception as error:  # noqa: BLE001 -- the request's reader gets it
            self._error = error
            self._engine.wake()


class Restores:
    """All documents that are being restored."""

    def __init__(
        self, model: ServedModel, engine: EngineThread, archive: Archive, cache: DocumentCache, metrics: Metrics
    ) -> None:
        self._model, self._engine, self._archive, self._cache, self._metrics = model, engine, archive, cache, metrics
        self._work: JointWork[ContentKey, CachedDocument] = JointWork(give_up=cache.release)

    @asynccontextmanager
    async def follow(self, key: ContentKey) -> AsyncIterator[Work[CachedDocument]]:
        """The document of a content that is in the store, for which an id stands.

        Its result raises StoredDocumentDamagedError, also if it isn't there; then the store has it no more.
        """
        async with self._work.follow(key, lambda report: self._restore(key, report)) as work:
            yield work

    async def attempt(self, key: ContentKey, *, with_scores: bool) -> CachedDocument | None:
        """The document of a content, if the store has it and can give it; the caller uses it."""
        try:
            manifest = await self._archive.find(key)
            if manifest is None or (with_scores and not manifest.has_scores):
                return None
            async with self.follow(key) as work:
                cached = await work.result()
                self._cache.retain(cached)
                return cached
        except (StoreUnavailableError, StoredDocumentDamagedError):
            return None  # the content is here: it can be read again

    async def _restore(self, key: ContentKey, report: Report) -> CachedDocument:
        archive = self._archive
        assert isinstance(archive, StoreArchive), "a document that isn't in memory needs a store"
        manifest = await archive.find(key)
        if manifest is None:
            raise self._damaged("its content is gone")
        try:
            if (manifest.pages, manifest.page_bytes) != self._model.page_sizes(manifest.tokens):
                raise self._damaged("its pages aren't those of so many tokens")
            reader = await archive.reader(manifest)
            source = ArrivingPages(self._engine)
            filling = asyncio.create_task(source.fill(archive, reader))
            try:
                document = await obtain_document(
                    self._engine,
                    lambda engine, sink: engine.submit_restore(reader.token_ids, reader.scores, source, sink),
                    report,
                    reading="restore",
                )
            finally:
                filling.cancel()
                archive.run_later(reader.close)
        except StoredDocumentDamagedError:
            await archive.drop(manifest)
            raise
        self._metrics.prefill_tokens.labels("restored").inc(document.tokens)
        return self._cache.put(key, document, manifest.notes, stored=True)

    def _damaged(self, reason: str) -> StoredDocumentDamagedError:
        """What the store itself can't see."""
        self._metrics.documents_lost.labels("damaged").inc()
        return StoredDocumentDamagedError(reason)
