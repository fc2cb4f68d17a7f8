"""One document: what is known about it, and what can be asked of it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self, Unpack

from reformer.v1 import document_pb2, inference_pb2
from reformer_client import messages
from reformer_client.calls import Caller
from reformer_client.messages import Sampling
from reformer_client.progress import OnProgress
from reformer_client.results import ContentType, ContinuationScore, DocumentInfo
from reformer_client.scores import Scores
from reformer_client.streams import AsyncDocumentScoreStream, AsyncGenerationStream


class DocumentFacts:
    """What is known about a document; as of the latest call that told."""

    info: DocumentInfo

    @property
    def id(self) -> str:
        """Finds the document again: `client.documents.get(id)`."""
        return self.info.id

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        return self.info.tokens

    @property
    def content_type(self) -> ContentType:
        """Whether text, token ids or a picture was uploaded."""
        return self.info.content_type

    @property
    def content_bytes(self) -> int:
        """Size of what was uploaded."""
        return self.info.content_bytes

    @property
    def memory_bytes(self) -> int:
        """Memory that the document holds on the server."""
        return self.info.memory_bytes

    @property
    def expire_time(self) -> datetime:
        """When the lease ends."""
        return self.info.expire_time

    @property
    def has_scores(self) -> bool:
        """Whether `scores` works: the document was created with `keep_scores`."""
        return self.info.has_scores

    @property
    def cached(self) -> bool:
        """Whether the server had the same content already."""
        return self.info.cached

    @property
    def stored(self) -> bool:
        """Whether the server has it in its document store by now, so that it outlives a restart."""
        return self.info.stored

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, tokens={self.tokens})"


class AsyncDocument(DocumentFacts):
    """A document on the server. Leaving its `with` block deletes it; without one it lives until its lease ends."""

    def __init__(self, caller: Caller, info: DocumentInfo) -> None:
        self._caller = caller
        self.info = info

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.delete()

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncGenerationStream:
        """Continues the document, or the document followed by `prompt` (text or token ids).

        Returns a stream of tokens; the call is made when the first one is asked for. `on_progress` hears about the
        reading of a long prompt. `timeout` is in seconds and covers the whole stream.
        """
        request = messages.generate_message(self.id, prompt, sampling)
        events = self._caller.stream(
            self._caller.services.inference.Generate,
            request,
            timeout=timeout,
            document_id=self.id,
            is_result=messages.is_result,
        )
        return AsyncGenerationStream(events, on_progress)

    async def scores(self, start: int | None = None, end: int | None = None, *, timeout: float | None = None) -> Scores:
        """The scores of the tokens from `start` to `end` (excluded), by default of all; for `keep_scores` only."""
        return await self.stream_scores(start, end, timeout=timeout).collect()

    def stream_scores(
        self, start: int | None = None, end: int | None = None, *, timeout: float | None = None
    ) -> AsyncDocumentScoreStream:
        """As `scores`, block by block."""
        request = document_pb2.ReadDocumentScoresRequest(document_id=self.id, start_token=start, end_token=end)
        events = self._caller.stream(
            self._caller.services.documents.ReadDocumentScores, request, timeout=timeout, document_id=self.id
        )
        is_whole = not start and end in (None, self.tokens)
        # A picture's bits are counted a value of its pixels, whatever format its file has.
        size = self.tokens if self.content_type is ContentType.IMAGE else self.content_bytes
        return AsyncDocumentScoreStream(events, size if is_whole else None)

    async def score_continuations(
        self, continuations: Sequence[str | Sequence[int]], *, timeout: float | None = None
    ) -> list[ContinuationScore]:
        """Scores up to 1024 continuations (text or token ids), each directly after the document, in their order."""
        if isinstance(continuations, str):
            raise TypeError("continuations must be a list of texts (or of lists of token ids), not one str")
        request = inference_pb2.ScoreContinuationsRequest(
            document_id=self.id, continuations=[messages.continuation_message(each) for each in continuations]
        )
        events = self._caller.stream(
            self._caller.services.inference.ScoreContinuations, request, timeout=timeout, document_id=self.id
        )
        return [messages.continuation_score(event.score) async for event in events]

    async def renew(self, lease_seconds: float | None = None, *, timeout: float | None = None) -> None:
        """Prolongs the lease: it then ends `lease_seconds` (by default the server's, one hour) from now."""
        self.info = await renew(self._caller, self.id, lease_seconds, timeout)

    async def delete(self, *, timeout: float | None = None) -> None:
        """Deletes the document. Calls that use it finish undisturbed; deleting it again is no error."""
        await delete(self._caller, self.id, timeout)


async def renew(caller: Caller, document_id: str, lease_seconds: float | None, timeout: float | None) -> DocumentInfo:
    """The document with its new lease."""
    lease = messages.lease_message(lease_seconds)
    request = document_pb2.RenewDocumentRequest(document_id=document_id, lease=lease)
    method = caller.services.documents.RenewDocument
    response = await caller.unary(method, request, timeout=timeout, document_id=document_id)
    return messages.document_info(response.document)


async def delete(caller: Caller, document_id: str, timeout: float | None) -> None:
    """Unknown ids are no error."""
    request = document_pb2.DeleteDocumentRequest(document_id=document_id)
    await caller.unary(caller.services.documents.DeleteDocument, request, timeout=timeout, document_id=document_id)
