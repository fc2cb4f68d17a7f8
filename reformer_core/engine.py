"""The engine: one model, the memory for documents and sessions, and the requests on them.

One thread calls everything here. Requests are submitted and then worked on turn by turn by `step`; the blocking calls
(`prefill`, `score`, `generate`) take turns until their own request is over.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from reformer_core.admission import Admission, Needs, holds
from reformer_core.blocking import Collected, OpenSession
from reformer_core.document import Document
from reformer_core.errors import (
    CancelledError,
    InvalidParameterError,
    InvalidTokensError,
    OutOfMemoryError,
    TooManyTokensError,
)
from reformer_core.events import DocumentReady, Progress, Scores, Sink, Token
from reformer_core.memory_plan import MemoryPlan
from reformer_core.model import ReformerModel
from reformer_core.pages import PageLayout, PagePool
from reformer_core.placement import available_memory
from reformer_core.requests import PrefillRequest, Request, Resources, ScoreRequest
from reformer_core.restore import PageSource, RestoreRequest
from reformer_core.sampling_params import SamplingParams
from reformer_core.scheduler import Scheduler
from reformer_core.session import Session
from reformer_core.session_requests import ContinuationsRequest, GenerateRequest
from reformer_core.session_table import SessionTable
from reformer_core.stopping import OutputText
from reformer_core.tokenizers import Tokenizer


@dataclass(frozen=True)
class EngineLoad:
    """How busy the engine is."""

    running: int
    waiting: int
    waiting_by_owner: Mapping[Hashable, int]
    retry_seconds: float
    """When those that wait now should have begun."""
    prefill_speed: float | None
    """Tokens a second at which documents are read at most; None: not known yet."""
    decode_batch_size: int
    documents: int
    used_page_bytes: int
    total_page_bytes: int
    workspace_bytes: int
    weights_bytes: int


class Engine:
    """Runs requests on one model."""

    def __init__(
        self,
        model: ReformerModel,
        tokenizer: Tokenizer | None = None,
        *,
        memory_bytes: int | None = None,
        max_running: int = 64,
        max_waiting: int = 256,
        max_text_tokens: int | None = None,
    ) -> None:
        """Allocates pages and sessions.

        Args:
            tokenizer: for the text of generated tokens and stop texts; None: only ids.
            memory_bytes: for everything: weights, sessions, workspace and pages. None: half of what is free.
            max_running: requests and open sessions at a time.
            max_waiting: requests in the queue.
            max_text_tokens: length of the longest text that is read, for which workspace is kept. None: that of the
                longest document that memory_bytes holds. Scoring takes one layer's pages only, so a longer text may be
                scored than kept; the workspace for it leaves less memory for documents.

        Raises:
            OutOfMemoryError: it isn't enough for the weights, the sessions and the shortest document, or for scoring
                max_text_tokens.
            TooManyTokensError: the model has fewer positions than max_text_tokens.
        """
        self.model, self.tokenizer = model, tokenizer
        self.max_running, self.max_waiting = max_running, max_waiting
        memory_bytes = available_memory(model.device) // 2 if memory_bytes is None else memory_bytes
        if max_text_tokens is None:
            plan = MemoryPlan.longest_within(memory_bytes, model.config, model.dtype, max_running, model.device)
        elif max_text_tokens > model.config.max_tokens:
            raise TooManyTokensError(max_text_tokens, model.config.max_tokens)
        else:
            plan = MemoryPlan(model.config, model.dtype, max_text_tokens, model.device)
            plan.check(memory_bytes, max_running)
        page_bytes = memory_bytes - plan.fixed_bytes(max_running)
        self.pool = PagePool(PageLayout(model.config, model.dtype), page_bytes, model.device)
        self.table = SessionTable(model.config, self.pool, max_running)
        self._weights_bytes = plan.weights_bytes
        self._admission = Admission(self.pool, max_running, plan.workspaces)
        self._resources = Resources(model, self.pool, self.table)
        self._scheduler = Scheduler(self._resources, self._admission, max_waiting)

    # -- requests

    def submit_prefill(
        self, token_ids: torch.Tensor, sink: Sink, *, keep_scores: bool = False, deadline: float | None = None
    ) -> Request:
        """Reads a document, int [n]: Started, Progress …, DocumentReady, Finished.

        Args:
            keep_scores: keep the log-probability of each token with the document.
            deadline: instant of time.monotonic().

        Raises:
            InvalidTokensError, TooManyTokensError: the model can't read these tokens.
            OutOfMemoryError: documents, there or to come, leave no room for it.
            QueueFullError: too many requests wait.
        """
        token_ids = self._checked(token_ids)
        return self._scheduler.submit(PrefillRequest(self._resources, token_ids, keep_scores, sink, deadline))

    def submit_restore(
        self,
        token_ids: torch.Tensor,
        scores: torch.Tensor | None,
        source: PageSource,
        sink: Sink,
        *,
        deadline: float | None = None,
    ) -> Request:
        """Takes back a document that this model read: Started, Progress …, DocumentReady, Finished. Raises as above.

        Args:
            token_ids: the document's, int [n].
            scores: the document's, float32 [n], or None.
            source: the document's pages, by the same page layout. The engine looks for more in every turn.
        """
        token_ids = self._checked(token_ids)
        return self._scheduler.submit(RestoreRequest(self._resources, token_ids, scores, source, sink, deadline))

    def submit_score(self, token_ids: torch.Tensor, sink: Sink, *, deadline: float | None = None) -> Request:
        """Scores a text, int [n], and retains nothing: Started, Progress …, Scores …, Finished. Raises as above."""
        return self._scheduler.submit(ScoreRequest(self._resources, self._checked(token_ids), sink, deadline))

    def submit_generate(
        self,
        document: Document | None,
        prompt_ids: torch.Tensor,
        params: SamplingParams,
        sink: Sink,
        *,
        deadline: float | None = None,
    ) -> Request:
        """Continues document and prompt, int [m]: Started, Progress …, Token …, Finished. Raises as above.

        After a document the prompt may be empty; without one, it may not. The pages for `params.max_tokens` are held
        from the beginning.
        """
        prompt_ids = self._checked(prompt_ids, document, may_be_empty=document is not None)
        vocab_size = self.model.config.vocab_size
        if any(id >= vocab_size for id in params.stop_ids):
            raise InvalidParameterError("stop_ids", f"must be below {vocab_size}, the size of the vocabulary")
        output = OutputText(self.tokenizer, params, self.model.config.eos_token_id)
        request = GenerateRequest(self._resources, document, prompt_ids, params, output, sink, deadline)
        return self._scheduler.submit(request)

    def submit_continuations(
        self,
        document: Document,
        continuations: Sequence[torch.Tensor],
        sink: Sink,
        *,
        deadline: float | None = None,
    ) -> Request:
        """Scores continuations of a document, int [m] each: Started, Progress …, ContinuationScored …, Finished.

        Raises as above.
        """
        if not continuations:
            raise InvalidTokensError("there are no continuations; at least one is needed")
        continuations = [self._checked(token_ids, document) for token_ids in continuations]
        return self._scheduler.submit(ContinuationsRequest(self._resources, document, continuations, sink, deadline))

    def cancel(self, request: Request) -> None:
        """Ends a request; idempotent. It frees its memory at once and fails with CancelledError, unless it is over."""
        self._scheduler.end(request, CancelledError("the request was cancelled"))

    def fail_all(self, error: Exception) -> None:
        """Ends every request with this error."""
        for request in self._scheduler.unfinished:
            self._scheduler.end(request, error)

    def step(self) -> bool:
        """One turn: admit, decode a token for every running session, read a slice of the next document.

        Returns:
            whether anything could be done; False: nothing runs, or all readers are behind.
        """
        return self._scheduler.step()

    # -- what is there

    @property
    def documents(self) -> list[Document]:
        """Documents that their owners have not closed."""
        return list(self._admission.documents)

    def load(self) -> EngineLoad:
        """How busy the engine is now."""
        running = self._scheduler.running
        return EngineLoad(
            running=len(running),
            waiting=len(self._scheduler.waiting),
            waiting_by_owner=self._scheduler.waiting.counts,
            retry_seconds=self._scheduler.retry_seconds,
            prefill_speed=self._scheduler.prefill_speed,
            decode_batch_size=self._scheduler.decode_batch_size,
            documents=len(self._admission.documents),
            used_page_bytes=self.pool.used_pages * self.pool.layout.page_bytes,
            total_page_bytes=self.pool.nbytes,
            workspace_bytes=sum(request.needs.workspace_bytes for request in running),
            weights_bytes=self._weights_bytes,
        )

    # -- blocking calls

    def prefill(
        self,
        token_ids: torch.Tensor,
        *,
        keep_scores: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Document:
        """Reads a document, int [n], and returns it; its owner closes it. Raises what `submit_prefill` does."""
        sink = Collected()
        request = self.submit_prefill(token_ids, sink, keep_scores=keep_scores)
        events = sink.until_over(self, request, on_progress)
        (document,) = [event.document for event in events if isinstance(event, DocumentReady)]
        return document

    def score(self, token_ids: torch.Tensor, *, on_progress: Callable[[Progress], None] | None = None) -> torch.Tensor:
        """Natural-log probability of each token, int [n], given those before it, in one full pass.

        Returns:
            float32 [n], CPU; the first is nan. Raises what `submit_score` does.
        """
        sink = Collected()
        events = sink.until_over(self, self.submit_score(token_ids, sink), on_progress)
        return torch.cat([event.logprobs for event in events if isinstance(event, Scores)])

    def generate(self, document: Document | None, prompt_ids: torch.Tensor, params: SamplingParams) -> Iterator[Token]:
        """Tokens that continue document and prompt, as they come; closing the iterator cancels the request.

        Raises what `submit_generate` does, at the first token.
        """
        sink = Collected()
        request = self.submit_generate(document, prompt_ids, params, sink)
        with closing(sink.until_over(self, request)) as events:
            yield from (event for event in events if isinstance(event, Token))

    def open(self, document: Document) -> OpenSession:
        """A session to be extended directly.

        Raises:
            InvalidTokensError: the document is closed.
            OutOfMemoryError: all sessions are taken.
        """
        _check_open(document)
        free = self._admission.free(request.needs for request in self._scheduler.running)
        if not holds(free, self._admission.room_for(Needs(pages=0))):
            raise OutOfMemoryError(self.table.nbytes // self.max_running, 0)
        session = Session(self.table, document)
        self._admission.open_sessions.add(session)
        return OpenSession(self, session)

    def close_session(self, session: Session) -> None:
        """Closes a session that `open` gave; idempotent."""
        session.close()
        self._admission.open_sessions.discard(session)

    # -- checks

    def _checked(
        self, token_ids: torch.Tensor, document: Document | None = None, *, may_be_empty: bool = False
    ) -> torch.Tensor:
        """A copy of token ids that the model can read, after the document's: it stays as it is now."""
        if document is not None:
            _check_open(document)
        if token_ids.dim() != 1:
            raise InvalidTokensError(f"token ids must have one dimension, but have {token_ids.dim()}")
        if len(token_ids) or not may_be_empty:
            self.model.check_token_ids(token_ids)
        total = len(token_ids) + (0 if document is None else document.tokens)
        if total > self.model.config.max_tokens:
            raise TooManyTokensError(total, self.model.config.max_tokens)
        return token_ids.to("cpu", torch.int32, copy=True)


def _check_open(document: Document) -> None:
    if document.closed:
        raise InvalidTokensError("the document is closed")
