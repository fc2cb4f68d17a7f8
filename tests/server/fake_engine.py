"""An engine that does no arithmetic: the core's contract, for tests that script its faults and its timing.

Each step does one slice of 4 tokens of the first long request, and one token for each generation. A document or a
session holds one byte of page memory a token, so that leaks are easy to count.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reformer_core import SamplingParams
from reformer_core.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidTokensError,
    OutOfMemoryError,
    QueueFullError,
    TooManyTokensError,
)
from reformer_core.events import (
    ContinuationScored,
    DocumentReady,
    Failed,
    Finished,
    FinishReason,
    Progress,
    Scores,
    Sink,
    Started,
    Timings,
    Token,
)

SLICE_TOKENS = 4


@dataclass(frozen=True)
class FakeLoad:
    running: int
    waiting: int
    decode_batch_size: int
    documents: int
    used_page_bytes: int
    total_page_bytes: int
    waiting_by_owner: Mapping[Hashable, int]
    retry_seconds: float = 1.0
    prefill_speed: float | None = None
    workspace_bytes: int = 7
    weights_bytes: int = 1000


class FakeDocument:
    def __init__(self, engine: "FakeEngine", token_ids: torch.Tensor, keep_scores: bool) -> None:
        self.tokens = self.nbytes = len(token_ids)
        self.token_ids = token_ids.to(torch.int32)
        self.scores = fake_scores(len(token_ids)) if keep_scores else None
        self._engine = engine
        self.closed = False

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        self._engine.documents.remove(self)


def fake_scores(tokens: int) -> torch.Tensor:
    return torch.cat([torch.tensor([float("nan")]), -torch.arange(1, tokens) / 10])


@dataclass(eq=False)
class FakeRequest:
    sink: Sink
    work_tokens: int
    held_bytes: int
    finish: Callable[["FakeRequest"], Sequence[Any]]
    generates: int = 0
    deadline: float | None = None
    phase: str = "waiting"
    done_tokens: int = 0
    generated: int = 0
    submitted: float = field(default_factory=time.monotonic)


class FakeEngine:
    """The engine of a model with `max_tokens` positions, `vocab_size` ids and `memory_bytes` of pages."""

    def __init__(
        self,
        *,
        max_tokens: int = 4096,
        vocab_size: int = 258,
        memory_bytes: int = 100_000,
        max_waiting: int = 256,
        step_seconds: float = 0.0,
    ) -> None:
        self.max_tokens = max_tokens
        self.vocab_size = vocab_size
        self.memory_bytes = memory_bytes
        self.max_waiting = max_waiting
        self.step_seconds = step_seconds
        self.fault: Exception | None = None  # raised by the next step
        self.request_fault: Exception | None = None  # ends the next request that is worked on
        self.documents: list[FakeDocument] = []
        self.requests: list[FakeRequest] = []
        self.steps = 0

    # -- submissions

    def submit_prefill(
        self, token_ids: torch.Tensor, sink: Sink, *, keep_scores: bool = False, deadline: float | None = None
    ) -> FakeRequest:
        def ready(request: FakeRequest) -> Sequence[Any]:
            document = FakeDocument(self, token_ids, keep_scores)
            self.documents.append(document)
            return [DocumentReady(document)]  # type: ignore[arg-type]

        return self._submit(sink, token_ids, 0, ready, deadline)

    def submit_score(self, token_ids: torch.Tensor, sink: Sink, *, deadline: float | None = None) -> FakeRequest:
        return self._submit(sink, token_ids, 0, lambda r: [Scores(0, fake_scores(len(token_ids)))], deadline)

    def submit_continuations(
        self,
        document: FakeDocument,
        continuations: Sequence[torch.Tensor],
        sink: Sink,
        *,
        deadline: float | None = None,
    ) -> FakeRequest:
        assert not document.closed, "used after close"
        scored = [ContinuationScored(i, -torch.ones(len(ids))) for i, ids in enumerate(continuations)]
        return self._submit(sink, torch.cat(list(continuations)), document.tokens, lambda r: scored, deadline)

    def submit_generate(
        self,
        document: FakeDocument | None,
        prompt_ids: torch.Tensor,
        params: SamplingParams,
        sink: Sink,
        *,
        deadline: float | None = None,
    ) -> FakeRequest:
        assert document is None or not document.closed, "used after close"
        cached = document.tokens if document else 0
        request = self._submit(sink, prompt_ids, cached, lambda r: [], deadline, may_be_empty=document is not None)
        request.generates = params.max_tokens
        return request

    def _submit(
        self,
        sink: Sink,
        token_ids: torch.Tensor,
        cached_tokens: int,
        finish: Callable[[FakeRequest], Sequence[Any]],
        deadline: float | None,
        *,
        may_be_empty: bool = False,
    ) -> FakeRequest:
        tokens = len(token_ids)
        if not tokens and not may_be_empty:
            raise InvalidTokensError("there are no tokens")
        if tokens and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self.vocab_size:
            raise InvalidTokensError(f"an id is outside the vocabulary of {self.vocab_size}")
        if cached_tokens + tokens > self.max_tokens:
            raise TooManyTokensError(cached_tokens + tokens, self.max_tokens)
        free = self.memory_bytes - self._used()
        if tokens > free:
            raise OutOfMemoryError(tokens, free, fits_when_idle=tokens <= self.memory_bytes)
        if sum(request.phase == "waiting" for request in self.requests) >= self.max_waiting:
            raise QueueFullError(self.max_waiting)
        request = FakeRequest(sink, tokens, tokens, finish, deadline=deadline)
        self.requests.append(request)
        return request

    # -- the rest of the contract

    def cancel(self, request: FakeRequest) -> None:
        if request.phase != "done":
            self._fail(request, CancelledError("cancelled"))

    def fail_all(self, error: Exception) -> None:
        for request in list(self.requests):
            self._fail(request, error)

    def step(self) -> bool:
        self.steps += 1
        if self.step_seconds:
            time.sleep(self.step_seconds)
        if self.fault is not None:
            raise self.fault
        worked = False
        for request in list(self.requests):
            if self.request_fault is not None:
                fault, self.request_fault = self.request_fault, None
                self._fail(request, fault)
            elif request.deadline is not None and time.monotonic() > request.deadline:
                self._fail(request, DeadlineExceededError("too late"))
            else:
                worked = self._work(request) or worked
        return worked

    def _work(self, request: FakeRequest) -> bool:
        if request.phase == "waiting":
            request.phase = "prefill"
            request.sink.emit(Started(time.monotonic() - request.submitted))
        if not request.sink.ready():
            return False
        if request.done_tokens < request.work_tokens:
            request.done_tokens = min(request.work_tokens, request.done_tokens + SLICE_TOKENS)
            request.sink.emit(Progress(request.done_tokens, request.work_tokens, 0.001 * request.done_tokens))
            return True
        for event in request.finish(request):
            request.sink.emit(event)
        if request.generated < request.generates:
            request.phase = "decode"
            id = 2 + ord("a") + request.generated % 26
            top = ((id, -0.5), (id + 1, -1.5))
            request.sink.emit(Token(id, -0.5, chr(id - 2), top))
            request.generated += 1
            request.held_bytes += 1
        if request.generated == request.generates:
            reason = FinishReason.LENGTH if request.generates else FinishReason.DONE
            self._end(request)
            request.sink.emit(Finished(reason, Timings(0.001, 0.002, 0.003, 0.004)))
        return True

    def load(self) -> FakeLoad:
        phases = [request.phase for request in self.requests]
        return FakeLoad(
            running=sum(phase != "waiting" for phase in phases),
            waiting=phases.count("waiting"),
            waiting_by_owner={"anonymous": phases.count("waiting")},
            decode_batch_size=phases.count("decode"),
            documents=len(self.documents),
            used_page_bytes=self._used(),
            total_page_bytes=self.memory_bytes,
        )

    def _used(self) -> int:
        documents = sum(document.nbytes for document in self.documents)
        return documents + sum(request.held_bytes for request in self.requests)

    def _fail(self, request: FakeRequest, error: Exception) -> None:
        self._end(request)
        request.sink.emit(Failed(error, Timings()))

    def _end(self, request: FakeRequest) -> None:
        request.phase = "done"
        self.requests.remove(request)
