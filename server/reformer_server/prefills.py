"""Contents that are being read. Calls that bring the same one at the same time follow one and the same reading."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from reformer_server import call_facts
from reformer_server.archive import Archive
from reformer_server.cache import CachedDocument, DocumentCache
from reformer_server.content import Content, ContentKey, Encoder
from reformer_server.document_requests import obtain_document
from reformer_server.engine_thread import EngineThread
from reformer_server.errors import naming
from reformer_server.joint import JointWork, Report, Work
from reformer_server.metrics import Metrics
from reformer_server.quotas import Quotas
from reformer_server.restores import Restores
from reformer_server.served_model import ServedModel


@dataclass(frozen=True)
class Reading:
    """A document, and whether it had to be computed."""

    cached: CachedDocument
    restored: bool


class Prefills:
    """All readings that are under way."""

    def __init__(
        self,
        model: ServedModel,
        engine: EngineThread,
        encoder: Encoder,
        cache: DocumentCache,
        archive: Archive,
        restores: Restores,
        metrics: Metrics,
        quotas: Quotas,
    ) -> None:
        self._model, self._engine, self._encoder, self._cache = model, engine, encoder, cache
        self._archive, self._restores, self._metrics, self._quotas = archive, restores, metrics, quotas
        self._work: JointWork[tuple[ContentKey, bool], Reading] = JointWork(
            give_up=lambda reading: cache.release(reading.cached)
        )

    @asynccontextmanager
    async def follow(
        self, content: Content, check: Callable[[int, int], None], *, keep_scores: bool
    ) -> AsyncIterator[Work[Reading]]:
        """The reading of this content: it comes from the store, if it is there, and else is computed.

        Args:
            check: raises what there is against a document of so many tokens and bytes, before it is read.

        The result raises InvalidFieldError, TooManyTokensError, StoreFullError, and what the engine has against it.
        """
        key = (content.key, keep_scores)
        async with self._work.follow(key, lambda report: self._read(content, check, keep_scores, report)) as work:
            yield work

    async def _read(
        self, content: Content, check: Callable[[int, int], None], keep_scores: bool, report: Report
    ) -> Reading:
        restored = await self._restores.attempt(content.key, with_scores=keep_scores)
        if restored is not None:
            return Reading(restored, restored=True)
        encoded = await self._encoder.content(content)
        tokens = len(encoded.token_ids)
        document_bytes = self._model.document_bytes(tokens, with_scores=keep_scores)
        call_facts.current().prompt_tokens = tokens
        check(tokens, document_bytes)
        await self._archive.promise(content.key, document_bytes)
        token_ids = encoded.token_ids
        try:
            with naming("chunk.data"):
                async with self._quotas.paying(len(token_ids)) as payment:
                    document = await obtain_document(
                        self._engine,
                        lambda engine, sink: engine.submit_prefill(token_ids, sink, keep_scores=keep_scores),
                        report,
                        payment.saw,
                    )
        except BaseException:
            self._archive.settle(content.key)
            raise
        self._metrics.prefill_tokens.labels("computed").inc(document.tokens)
        return Reading(self._cache.put(content.key, document, encoded.notes), restored=False)
