"""The engine: owns the pages, the documents' memory and the sessions, and does all requests' work, a turn at a time.

One thread calls everything here. `step` is one turn; the blocking calls (`prefill`, `score`, `generate`) take turns until
their own request is over.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from reformer_core.blocking import Collected, OpenSession
from reformer_core.document import Document
from reformer_core.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidParameterError,
    InvalidTokensError,
    OutOfMemoryError,
    QueueFullError,
    TooManyTokensError,
)
from reformer_core.events import DocumentReady, Event, Failed, Finished, FinishReason, Progress, Scores, Sink, Started, Token
from reformer_core.incremental import decode_step, tail_capacity_for
from reformer_core.memory_plan import MemoryPlan
from reformer_core.model import ReformerModel
from reformer_core.pages import PageLayout, PagePool
from reformer_core.placement import available_memory
from reformer_core.requests import ContinuationsRequest, GenerateRequest, PrefillRequest, Request, ScoreRequest
from reformer_core.sampling import BatchSampling, Sampled, sample
from reformer_core.sampling_params import SamplingParams
from reformer_core.session import Session
from reformer_core.session_table import SessionTable
from reformer_core.stopping import OutputText
from reformer_core.tokenizers import Tokenizer

MOST_WORKSPACE_SHARE = 0.5  # of the memory that weights and sessions leave; pages get the rest


@dataclass(frozen=True)
class EngineLoad:
    """How busy the engine is."""

    running: int
    waiting: int
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
    ) -> None:
        """Allocates pages and sessions.

        Args:
            tokenizer: for the text of generated tokens and stop texts; None: only ids.
            memory_bytes: for everything: weights, sessions, workspace and pages. None: half of what is free.
            max_running: requests and open sessions at a time.
            max_waiting: requests in the queue.

        Raises:
            OutOfMemoryError: the memory isn't enough for weights, sessions and one page.
        """
        self.model, self.tokenizer = model, tokenizer
        self.max_running, self.max_waiting = max_running, max_waiting
        plan = MemoryPlan(model.config, model.dtype, model.config.max_tokens)
        memory_bytes = available_memory(model.device) // 2 if memory_bytes is None else memory_bytes
        fixed = plan.weights_bytes + max_running * plan.session_bytes
        rest = memory_bytes - fixed
        layout = PageLayout(model.config, model.dtype)
        if rest < 2 * layout.page_bytes:
            raise OutOfMemoryError(fixed + 2 * layout.page_bytes, memory_bytes, fits_when_idle=False)
        self.workspace_capacity_bytes = min(plan.workspace_bytes, int(rest * MOST_WORKSPACE_SHARE))
        self.pool = PagePool(layout, rest - self.workspace_capacity_bytes, model.device)
        self.table = SessionTable(model.config, self.pool, max_running)
        self._seen = torch.zeros(max_running, model.config.vocab_size, dtype=torch.bool, device=model.device)
        self._weights_bytes = plan.weights_bytes
        self._waiting: deque[Request] = deque()
        self._reading: deque[Request] = deque()
        self._decoding: list[GenerateRequest] = []
        self._documents: set[Document] = set()
        self._open_sessions = 0
        self._decode_batch_size = 0
        self._sampling: tuple[list[GenerateRequest], BatchSampling] | None = None

    # -- one turn

    def step(self) -> bool:
        """One turn: admit, decode a token for every running session, read a slice of the next document.

        Returns:
            whether anything could be done; False: nothing runs, or all readers are behind.
        """
        with torch.inference_mode():
            self._end_overdue()
            admitted = self._admit()
            decoded = self._decode()
            read = self._read_slice()
        return admitted or decoded or read

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for request in [*self._waiting, *self._reading, *self._decoding]:
            if request.deadline is not None and now > request.deadline:
                self._end(request, DeadlineExceededError("the deadline passed before the request was finished"))

    def _admit(self) -> bool:
        """Begins waiting requests in their order, as long as there is room for the next."""
        admitted = False
        while self._waiting and self._has_room(self._waiting[0]):
            request = self._waiting.popleft()
            admitted = True
            try:
                request.work = request.begin(self)
            except Exception as error:
                self._end(request, error)
                continue
            request.workspace_bytes = request.workspace_needed(self)
            self._reading.append(request)
            request.sink.emit(Started(request.note_start()))
        return admitted

    def _has_room(self, request: Request) -> bool:
        return (
            len(self._running) + self._open_sessions < self.max_running
            and request.pages_needed(self) <= self.pool.free_pages
            and request.workspace_needed(self) <= self.workspace_capacity_bytes - self._workspace_bytes
        )

    def _decode(self) -> bool:
        """Samples a token for each running session whose reader has room, and appends it."""
        batch = [request for request in self._decoding if request.sink.ready()]
        self._decode_batch_size = len(batch)
        if not batch:
            return False
        try:
            self._decode_batch(batch)
        except Exception as error:
            for request in batch:
                self._end(request, error)
        return True

    def _decode_batch(self, batch: list[GenerateRequest]) -> None:
        device = self.model.device
        rows = torch.tensor([_session(request).row for request in batch], device=device)
        steps = torch.tensor([request.generated for request in batch], device=device)
        if self._sampling is None or self._sampling[0] != batch:
            self._sampling = (batch, BatchSampling.of([request.params for request in batch], device))
        top = max(request.params.top_logprobs for request in batch)
        sampled = sample(self.table.next_logits[rows], self._sampling[1], steps, self._seen[rows], top)
        self._seen[rows, sampled.ids] = True
        going_on = [
            index
            for index, (request, id, logprob, tops) in enumerate(
                zip(batch, sampled.ids.tolist(), sampled.logprobs.tolist(), _tops(sampled, top), strict=True)
            )
            if self._emit_token(request, id, logprob, tops)
        ]
        if going_on:
            sessions = [_session(batch[index]) for index in going_on]
            for session in sessions:
                session.reserve(1)
                if session.tail_tokens == self.table.tail_capacity:
                    session.merge_tail()
            longest = max(session.tail_tokens for session in sessions)
            capacity = tail_capacity_for(longest + 1, self.table.tail_capacity)
            chosen = torch.tensor(going_on, device=device)
            decode_step(self.model, self.table, rows[chosen], sampled.ids[chosen], capacity)
            for session in sessions:
                session.appended(1)

    def _emit_token(
        self, request: GenerateRequest, id: int, logprob: float, top: Sequence[tuple[int, float]]
    ) -> bool:
        """Tells the reader; returns whether the request goes on."""
        request.generated += 1
        request.note_token()
        text, reason = request.output.push(id)
        if reason is None and _session(request).length == self.model.config.max_tokens:
            text, reason = text + request.output.finish(), FinishReason.POSITIONS_EXHAUSTED
        request.sink.emit(Token(id, logprob, text, tuple(top[: request.params.top_logprobs])))
        if reason is not None:
            self._end(request, reason)
        return reason is None

    def _read_slice(self) -> bool:
        """One slice of the next request that can go on; those that read take turns."""
        for _ in range(len(self._reading)):
            request = self._reading.popleft()
            try:
                done_a_slice = next(request.work)
            except StopIteration:
                self._finish_reading(request)
                return True
            except Exception as error:
                self._end(request, error)
                return True
            self._reading.append(request)
            if done_a_slice:
                return True
        return False

    def _finish_reading(self, request: Request) -> None:
        if isinstance(request, PrefillRequest):
            self._documents.add(request.document)
        if isinstance(request, GenerateRequest):
            self._seen[_session(request).row] = False
            self._seen[_session(request).row, request.prompt_ids.long().to(self.model.device)] = True
            request.note_decoding()
            self._decoding.append(request)
        else:
            self._end(request, FinishReason.DONE)

    def _end(self, request: Request, outcome: FinishReason | Exception) -> None:
        """Takes the request out, frees what it holds, and tells its reader."""
        timings = request.timings
        for requests in (self._waiting, self._reading, self._decoding):
            if request in requests:
                requests.remove(request)  # type: ignore[arg-type]
        request.phase = "done"
        request.free()
        if isinstance(outcome, FinishReason):
            request.sink.emit(Finished(outcome, timings))
        else:
            request.sink.emit(Failed(_as_memory_error(outcome, request.workspace_bytes), timings))

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
            OutOfMemoryError: documents in memory leave no room for it.
            QueueFullError: too many requests wait.
        """
        self.model.check_token_ids(token_ids)
        return self._submit(PrefillRequest(token_ids, keep_scores, sink, deadline))

    def submit_score(self, token_ids: torch.Tensor, sink: Sink, *, deadline: float | None = None) -> Request:
        """Scores a text, int [n], and retains nothing: Started, Progress …, Scores …, Finished. Raises as above."""
        self.model.check_token_ids(token_ids)
        return self._submit(ScoreRequest(token_ids, sink, deadline))

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

        With a document the prompt may be empty; without one, or a document that is closed, it may not.
        """
        self._check_appended(document, prompt_ids, may_be_empty=document is not None)
        if any(id >= self.model.config.vocab_size for id in params.stop_ids):
            raise InvalidParameterError("stop_ids", f"ids must be below the vocabulary's {self.model.config.vocab_size}")
        output = OutputText(self.tokenizer, params, self.model.config.eos_token_id)
        return self._submit(GenerateRequest(document, prompt_ids, params, output, sink, deadline))

    def submit_continuations(
        self,
        document: Document,
        continuations: Sequence[torch.Tensor],
        sink: Sink,
        *,
        deadline: float | None = None,
    ) -> Request:
        """Scores continuations of a document: Started, Progress …, ContinuationScored …, Finished. Raises as above."""
        if not continuations:
            raise InvalidTokensError("there are no continuations; at least one is needed")
        for continuation in continuations:
            self._check_appended(document, continuation, may_be_empty=False)
        return self._submit(ContinuationsRequest(document, continuations, sink, deadline))

    def cancel(self, request: Request) -> None:
        """Ends a request; idempotent. It frees its memory at once and fails with CancelledError, unless it is over."""
        if request.phase != "done":
            self._end(request, CancelledError("the request was cancelled"))

    def fail_all(self, error: Exception) -> None:
        """Ends every request with this error."""
        for request in [*self._waiting, *self._running]:
            self._end(request, error)

    def load(self) -> EngineLoad:
        """How busy the engine is now."""
        return EngineLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            decode_batch_size=self._decode_batch_size,
            documents=len(self.documents),
            used_page_bytes=self.pool.used_pages * self.pool.layout.page_bytes,
            total_page_bytes=self.pool.nbytes,
            workspace_bytes=self._workspace_bytes,
            weights_bytes=self._weights_bytes,
        )

    @property
    def documents(self) -> list[Document]:
        """Documents that their owners have not closed."""
        self._documents = {document for document in self._documents if not document.closed}
        return list(self._documents)

    @property
    def _running(self) -> list[Request]:
        return [*self._reading, *self._decoding]

    @property
    def _workspace_bytes(self) -> int:
        return sum(request.workspace_bytes for request in self._reading)

    def _check_appended(self, document: Document | None, token_ids: torch.Tensor, *, may_be_empty: bool) -> None:
        if document is not None and document.freed:
            raise InvalidTokensError("the document is closed")
        if len(token_ids) or not may_be_empty:
            self.model.check_token_ids(token_ids)
        total = len(token_ids) + (0 if document is None else document.tokens)
        if total > self.model.config.max_tokens:
            raise TooManyTokensError(total, self.model.config.max_tokens)

    def _submit(self, request: Request) -> Request:
        """Queues a request that can begin once what runs is over."""
        try:
            if len(self._waiting) >= self.max_waiting:
                raise QueueFullError(len(self._waiting))
            size = self.pool.layout.page_bytes
            kept = sum(len(document.pages) for document in self.documents)
            pages = request.pages_needed(self)
            if pages > self.pool.total_pages - kept:
                free = (self.pool.total_pages - kept) * size
                raise OutOfMemoryError(pages * size, free, fits_when_idle=pages <= self.pool.total_pages)
            workspace = request.workspace_needed(self)
            if workspace > self.workspace_capacity_bytes:
                raise OutOfMemoryError(workspace, self.workspace_capacity_bytes, fits_when_idle=False)
        except Exception:
            request.free()
            raise
        self._waiting.append(request)
        return request

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
        documents = [event.document for event in self._events(request, sink, on_progress) if isinstance(event, DocumentReady)]
        return documents[0]

    def score(
        self, token_ids: torch.Tensor, *, on_progress: Callable[[Progress], None] | None = None
    ) -> torch.Tensor:
        """Natural-log probability of each token, int [n], given those before it, in one full pass.

        Returns:
            float32 [n], CPU; the first is nan. Raises what `submit_score` does.
        """
        sink = Collected()
        request = self.submit_score(token_ids, sink)
        events = self._events(request, sink, on_progress)
        return torch.cat([event.logprobs for event in events if isinstance(event, Scores)])

    def generate(
        self, document: Document | None, prompt_ids: torch.Tensor, params: SamplingParams
    ) -> Iterator[Token]:
        """Tokens that continue document and prompt, as they come; closing the iterator cancels the request.

        Raises what `submit_generate` does, at the first token.
        """
        sink = Collected()
        request = self.submit_generate(document, prompt_ids, params, sink)
        try:
            for event in self._events(request, sink, None):
                if isinstance(event, Token):
                    yield event
        finally:
            self.cancel(request)

    def open(self, document: Document) -> OpenSession:
        """A session to be extended directly. Raises OutOfMemoryError if all sessions are taken."""
        if len(self._running) + self._open_sessions >= self.max_running:
            raise OutOfMemoryError(self.table.nbytes // self.max_running, 0)
        session = Session(self.table, document)
        self._open_sessions += 1
        return OpenSession(self, session)

    def close_session(self, session: Session) -> None:
        """Closes a session that `open` gave; idempotent."""
        if not session.closed:
            session.close()
            self._open_sessions -= 1

    def _events(
        self, request: Request, sink: Collected, on_progress: Callable[[Progress], None] | None
    ) -> Iterator[Event]:
        """A request's events, turn after turn, to its end. Raises its error."""
        while True:
            while sink.events:
                event = sink.events.popleft()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Progress) and on_progress is not None:
                    on_progress(event)
                yield event
            if request.phase == "done":
                return
            self.step()


def _session(request: GenerateRequest) -> Session:
    assert request.session is not None, "a request that decodes has a session"
    return request.session


def _tops(sampled: Sampled, count: int) -> list[list[tuple[int, float]]]:
    """The most likely tokens of each session."""
    if count == 0:
        return [[]] * len(sampled.ids)
    ids, logprobs = sampled.top_ids.tolist(), sampled.top_logprobs.tolist()
    return [list(zip(*row, strict=True)) for row in zip(ids, logprobs, strict=True)]


def _as_memory_error(error: Exception, needed_bytes: int) -> Exception:
    """The device's own lack of memory is an OutOfMemoryError, too."""
    lacking = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return OutOfMemoryError(needed_bytes, 0) if lacking else error
