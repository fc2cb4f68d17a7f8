"""Requests: what each kind needs to begin, its work as a generator of slices, and what it frees at its end.

A work generator yields True after each slice, False if it can't go on because its reader has no room.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch

from reformer_core.document import Document
from reformer_core.errors import ReformerError
from reformer_core.events import ContinuationScored, DocumentReady, Progress, Scores, Sink, Timings
from reformer_core.extend import extend
from reformer_core.memory_plan import MemoryPlan
from reformer_core.model import ReformerModel
from reformer_core.pages import PagePool
from reformer_core.prefill import Prefill
from reformer_core.sampling_params import SamplingParams
from reformer_core.session import Session, tail_pages_needed
from reformer_core.session_table import SessionTable
from reformer_core.stopping import OutputText

PROGRESS_SECONDS = 0.1  # not more often than this
SCORES_TOKENS = 32768  # in one event

Phase = Literal["waiting", "prefill", "decode", "done"]


class Resources(Protocol):
    """What requests take from the engine."""

    model: ReformerModel
    pool: PagePool
    table: SessionTable


class Request(ABC):
    """One request in the engine, from submission to its end."""

    def __init__(self, sink: Sink, deadline: float | None, tokens: int) -> None:
        self.sink, self.deadline = sink, deadline
        self.tokens = tokens  # to be read, for progress
        self.phase: Phase = "waiting"
        self.work: Iterator[bool] = iter(())
        self.workspace_bytes = 0  # held, as long as it reads
        self._submitted = time.monotonic()
        self._started: float | None = None
        self._decoding: float | None = None
        self._first_token: float | None = None
        self._told = 0.0

    @abstractmethod
    def pages_needed(self, resources: Resources) -> int:
        """Pages that it takes when it begins: all that it will ever hold."""

    def workspace_needed(self, resources: Resources) -> int:
        """Bytes of workspace that it takes while it reads."""
        return 0

    @abstractmethod
    def begin(self, resources: Resources) -> Iterator[bool]:
        """Takes its pages and returns its work. Raises OutOfMemoryError; then it holds nothing."""

    @abstractmethod
    def free(self) -> None:
        """Gives back what it holds; idempotent."""

    def note_start(self) -> float:
        """It leaves the queue; returns the seconds it waited."""
        self._started, self.phase = time.monotonic(), "prefill"
        return self._started - self._submitted

    def note_decoding(self) -> None:
        """Its prompt is read."""
        self._decoding, self.phase = time.monotonic(), "decode"

    def note_token(self) -> None:
        """A token came."""
        self._first_token = self._first_token or time.monotonic()

    def tell_progress(self, fraction: float) -> None:
        """Tells its reader how far it is, not too often."""
        now = time.monotonic()
        if self._started is not None and now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self.sink.emit(Progress(int(self.tokens * fraction), self.tokens, now - self._started))

    @property
    def timings(self) -> Timings:
        """Seconds in each phase so far."""
        now = time.monotonic()
        started = self._started or now
        decoding = self._decoding or now
        return Timings(
            queued_seconds=started - self._submitted,
            prefill_seconds=decoding - started,
            decode_seconds=now - decoding,
            first_token_seconds=None if self._first_token is None else self._first_token - self._submitted,
        )

    def _read(self, prefill: Prefill) -> Iterator[bool]:
        for _ in prefill.slices():
            self.tell_progress(prefill.done_fraction)
            yield True


class PrefillRequest(Request):
    """Reads a document and keeps it."""

    def __init__(self, token_ids: torch.Tensor, keep_scores: bool, sink: Sink, deadline: float | None) -> None:
        super().__init__(sink, deadline, len(token_ids))
        self._token_ids, self._keep_scores = token_ids, keep_scores
        self._prefill: Prefill | None = None

    def pages_needed(self, resources: Resources) -> int:
        return Prefill.pages_needed(resources.model, resources.pool, self.tokens, keep_document=True)

    def workspace_needed(self, resources: Resources) -> int:
        return _workspace(resources, self.tokens)

    def begin(self, resources: Resources) -> Iterator[bool]:
        self._prefill = Prefill(
            resources.model, resources.pool, self._token_ids, keep_document=True, keep_scores=self._keep_scores
        )
        return self._work(self._prefill)

    def free(self) -> None:
        if self._prefill is not None:
            self._prefill.close()

    @property
    def document(self) -> Document:
        """The document, when the work is done."""
        assert self._prefill is not None
        assert self._prefill.document is not None
        return self._prefill.document

    def _work(self, prefill: Prefill) -> Iterator[bool]:
        yield from self._read(prefill)
        self.sink.emit(DocumentReady(self.document))


class ScoreRequest(Request):
    """Scores a text and keeps nothing."""

    def __init__(self, token_ids: torch.Tensor, sink: Sink, deadline: float | None) -> None:
        super().__init__(sink, deadline, len(token_ids))
        self._token_ids = token_ids
        self._prefill: Prefill | None = None

    def pages_needed(self, resources: Resources) -> int:
        return Prefill.pages_needed(resources.model, resources.pool, self.tokens, keep_document=False)

    def workspace_needed(self, resources: Resources) -> int:
        return _workspace(resources, self.tokens)

    def begin(self, resources: Resources) -> Iterator[bool]:
        self._prefill = Prefill(resources.model, resources.pool, self._token_ids, keep_document=False, keep_scores=True)
        return self._work(self._prefill)

    def free(self) -> None:
        if self._prefill is not None:
            self._prefill.close()

    def _work(self, prefill: Prefill) -> Iterator[bool]:
        yield from self._read(prefill)
        assert prefill.scores is not None
        for start in range(0, self.tokens, SCORES_TOKENS):
            while not self.sink.ready():
                yield False
            self.sink.emit(Scores(start, prefill.scores[start : start + SCORES_TOKENS]))


class GenerateRequest(Request):
    """Continues a document, a prompt, or a document followed by a prompt. When its work is done, it decodes."""

    def __init__(
        self,
        document: Document | None,
        prompt_ids: torch.Tensor,
        params: SamplingParams,
        output: OutputText,
        sink: Sink,
        deadline: float | None,
    ) -> None:
        super().__init__(sink, deadline, len(prompt_ids))
        self.params, self.output, self.prompt_ids = params, output, prompt_ids
        self.generated = 0
        self.session: Session | None = None
        self._document = document
        self._prefill: Prefill | None = None
        self._tail_pages: list[int] = []
        self._pool: PagePool | None = None
        if document is not None:
            document.acquire()  # it may be deleted while this waits

    def pages_needed(self, resources: Resources) -> int:
        needed = self._tail_pages_needed(resources)
        if self._document is None:
            needed += Prefill.pages_needed(resources.model, resources.pool, self.tokens, keep_document=True)
        return needed

    def workspace_needed(self, resources: Resources) -> int:
        return _workspace(resources, self.tokens) if self._document is None else 0

    def begin(self, resources: Resources) -> Iterator[bool]:
        self._pool = resources.pool
        self._tail_pages = resources.pool.allocate(self._tail_pages_needed(resources))
        if self._document is not None:
            return self._read_after(resources, self._document)
        try:
            self._prefill = Prefill(
                resources.model, resources.pool, self.prompt_ids, keep_document=True, keep_scores=False
            )
        except ReformerError:
            self._free_tail_pages()
            raise
        return self._read_alone(resources, self._prefill)

    def free(self) -> None:
        if self._prefill is not None:
            self._prefill.close()
        if self.session is not None:
            self.session.close()
        self._free_tail_pages()
        if self._document is not None:
            self._document.release()
            self._document = None

    def _read_alone(self, resources: Resources, prefill: Prefill) -> Iterator[bool]:
        """The prompt is all there is: it is read as a document that nobody else will see."""
        yield from self._read(prefill)
        self._document = prefill.document
        assert self._document is not None
        self._open(resources, self._document)

    def _read_after(self, resources: Resources, document: Document) -> Iterator[bool]:
        session = self._open(resources, document)
        done = 0
        for logits in extend(resources.model, session, self.prompt_ids):
            done += len(logits)
            self.tell_progress(done / self.tokens)
            yield True

    def _open(self, resources: Resources, document: Document) -> Session:
        self.session = Session(resources.table, document, self._tail_pages)
        self._tail_pages = []
        return self.session

    def _tail_pages_needed(self, resources: Resources) -> int:
        limit = resources.model.config.max_tokens
        before = self.tokens if self._document is None else self._document.tokens
        appended = self.params.max_tokens + (0 if self._document is None else self.tokens)
        return tail_pages_needed(resources.table, before, min(appended, limit - before))

    def _free_tail_pages(self) -> None:
        if self._pool is not None:
            self._pool.release(self._tail_pages)
        self._tail_pages = []


class ContinuationsRequest(Request):
    """Scores continuations of a document, one after the other."""

    def __init__(
        self, document: Document, continuations: Sequence[torch.Tensor], sink: Sink, deadline: float | None
    ) -> None:
        super().__init__(sink, deadline, sum(len(tokens) for tokens in continuations))
        self._document: Document | None = document
        self._continuations = continuations
        self._session: Session | None = None
        document.acquire()

    def pages_needed(self, resources: Resources) -> int:
        assert self._document is not None
        longest = max(len(tokens) for tokens in self._continuations)
        return tail_pages_needed(resources.table, self._document.tokens, longest)

    def begin(self, resources: Resources) -> Iterator[bool]:
        assert self._document is not None
        pages = resources.pool.allocate(self.pages_needed(resources))
        self._session = Session(resources.table, self._document, pages)
        return self._work(resources.model, self._document, self._session)

    def free(self) -> None:
        if self._session is not None:
            self._session.close()
        if self._document is not None:
            self._document.release()
            self._document = None

    def _work(self, model: ReformerModel, document: Document, session: Session) -> Iterator[bool]:
        done = 0
        for index, token_ids in enumerate(self._continuations):
            session.rewind()
            targets = token_ids.long().to(model.device).unsqueeze(-1)
            parts = [document.next_logits[None].log_softmax(dim=-1).gather(-1, targets[:1])]
            for logits in extend(model, session, token_ids[:-1]):
                after = sum(len(part) for part in parts)
                parts.append(logits.log_softmax(dim=-1).gather(-1, targets[after : after + len(logits)]))
                self.tell_progress((done + after) / self.tokens)
                yield True
            done += len(token_ids)
            while not self.sink.ready():
                yield False
            self.sink.emit(ContinuationScored(index, torch.cat(parts).squeeze(-1).cpu()))
            yield True


def _workspace(resources: Resources, tokens: int) -> int:
    return MemoryPlan(resources.model.config, resources.model.dtype, tokens).workspace_bytes
