"""Documents that are being read. Calls that bring the same content at the same time follow one and the same reading."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from reformer_core import Document
from reformer_core.events import DocumentReady, Progress
from reformer_server.content import Content, ContentKey, Encoder
from reformer_server.documents import DocumentRegistry, SharedDocument
from reformer_server.engine_thread import EngineThread
from reformer_server.errors import naming
from reformer_server.metrics import Metrics
from reformer_server.quotas import Quotas


class Prefill:
    """One reading of one content."""

    def __init__(self) -> None:
        self.followers = 0
        self.task: asyncio.Task[SharedDocument]
        self._progress: Progress | None = None
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def report(self, progress: Progress) -> None:
        """Tells all followers."""
        self._progress = progress
        self._news.set_result(None)
        self._news = asyncio.get_running_loop().create_future()

    async def progress(self) -> AsyncIterator[Progress]:
        """The latest progress whenever there is news, until the reading is over."""
        seen = None
        while not self.task.done():
            if self._progress is not None and self._progress is not seen:
                seen = self._progress
                yield seen
            else:
                futures: set[asyncio.Future[Any]] = {self.task, self._news}
                await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)

    def result(self) -> SharedDocument:
        """The document, or its error, once `progress` has ended."""
        return self.task.result()


class Prefills:
    """All readings that are under way."""

    def __init__(
        self,
        engine: EngineThread,
        encoder: Encoder,
        documents: DocumentRegistry,
        metrics: Metrics,
        quotas: Quotas,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._documents = documents
        self._metrics = metrics
        self._quotas = quotas
        self._prefills: dict[tuple[ContentKey, bool], Prefill] = {}

    @asynccontextmanager
    async def follow(self, content: Content, *, keep_scores: bool) -> AsyncIterator[Prefill]:
        """The reading of this content, begun if need be, and given up when its last follower has left.

        It has no deadline of its own, for each follower has another: one that is late is cancelled, and so leaves.
        """
        key = (content.key, keep_scores)
        prefill = self._prefills.get(key)
        if prefill is None:
            prefill = self._prefills[key] = Prefill()
            prefill.task = asyncio.create_task(self._read(prefill, content, keep_scores))
        prefill.followers += 1
        try:
            yield prefill
        finally:
            prefill.followers -= 1
            if prefill.followers == 0:
                del self._prefills[key]
                _end(prefill.task)

    async def _read(self, prefill: Prefill, content: Content, keep_scores: bool) -> SharedDocument:
        encoded = await self._encoder.content(content)
        self._documents.sweep()  # what has expired makes room, before the engine looks for it
        document: Document | None = None
        try:
            with naming("chunk.data"):
                async with (
                    self._quotas.paying(len(encoded.token_ids)),
                    self._engine.request(
                        lambda engine, sink: engine.submit_prefill(encoded.token_ids, sink, keep_scores=keep_scores)
                    ) as stream,
                ):
                    async for events in stream.batches():
                        for event in events:
                            if isinstance(event, Progress):
                                prefill.report(event)
                            elif isinstance(event, DocumentReady):
                                document = event.document
        except BaseException:
            if document is not None:
                ready = document
                self._engine.post(lambda engine: ready.close())
            raise
        assert document is not None, "the engine finished a prefill without a document"
        self._metrics.prefill_tokens.labels("computed").inc(document.tokens)
        return self._documents.share(content.key, document, encoded.notes)


def _end(task: asyncio.Task[SharedDocument]) -> None:
    """Gives up the reading, or this module's hold on the document that came of it."""
    if not task.done():
        task.cancel()
    elif not task.cancelled() and task.exception() is None:
        task.result().release()
