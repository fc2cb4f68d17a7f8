"""Requests: what each kind needs, its work as a generator of slices, and what it gives back at its end.

Here are the kinds that read a sequence from its beginning; `session_requests` has those that append to a document.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from reformer_core.admission import Needs
from reformer_core.document import Document
from reformer_core.events import DocumentReady, Progress, Scores, Sink, Timings
from reformer_core.memory_plan import MemoryPlan
from reformer_core.model import ReformerModel
from reformer_core.pages import PagePool
from reformer_core.prefill import Prefill
from reformer_core.session_table import SessionTable

PROGRESS_SECONDS = 0.1  # not more often than this
SCORES_TOKENS = 32768  # in one event

Phase = Literal["waiting", "prefill", "decode", "done"]


@dataclass(frozen=True)
class Resources:
    """What the requests of an engine work with."""

    model: ReformerModel
    pool: PagePool
    table: SessionTable

    def prefill(self, token_ids: torch.Tensor, *, keep_document: bool, keep_scores: bool) -> Prefill:
        """Begins to read a sequence, int [n]. Raises OutOfMemoryError; nothing is taken."""
        return Prefill(self.model, self.pool, token_ids, keep_document=keep_document, keep_scores=keep_scores)

    def prefill_needs(self, tokens: int, *, keep_document: bool, leaves_document: bool = False) -> Needs:
        """What reading a sequence takes."""
        pages = Prefill.pages_needed(self.model, self.pool, tokens, keep_document=keep_document)
        plan = MemoryPlan(self.model.config, self.model.dtype, tokens, self.model.device)
        return Needs(pages, plan.workspace_bytes, leaves_document)


class Request(ABC):
    """One request in the engine, from submission to its end."""

    def __init__(self, resources: Resources, needs: Needs, tokens: int, sink: Sink, deadline: float | None) -> None:
        """Args:
        needs: all that it will ever hold.
        tokens: to be read, for progress.
        """
        self.resources, self.needs, self.tokens, self.sink, self.deadline = resources, needs, tokens, sink, deadline
        self.phase: Phase = "waiting"
        self.work: Iterator[bool] = iter(())
        """Yields True after each slice, False if it can't go on because its reader has no room."""
        self.submitted = time.monotonic()
        self._started: float | None = None
        self._decoding: float | None = None
        self._first_token: float | None = None
        self._told = 0.0
        self.worked_seconds = 0.0
        """That its own slices have taken."""
        self.had_to_wait = False
        """Whether it couldn't begin at once."""

    @property
    def owner(self) -> Hashable:
        """Whose it is."""
        return self.sink.owner

    @abstractmethod
    def begin(self) -> Iterator[bool]:
        """Takes the pages it needs and returns its work; whatever it raises, `free` gives back what was taken."""

    @abstractmethod
    def free(self) -> None:
        """Gives back what it holds; idempotent."""

    def note_start(self) -> float:
        """It leaves the queue; returns the seconds it waited."""
        self._started, self.phase = time.monotonic(), "prefill"
        return self._started - self.submitted

    def note_decoding(self) -> None:
        """Its prompt is read."""
        self._decoding, self.phase = time.monotonic(), "decode"

    def note_first_token(self) -> None:
        """A token came; the first one counts."""
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
            queued_seconds=started - self.submitted,
            prefill_seconds=decoding - started,
            decode_seconds=now - decoding,
            first_token_seconds=None if self._first_token is None else self._first_token - self.submitted,
        )

    def read(self, prefill: Prefill) -> Iterator[bool]:
        """The part of its work that reads a sequence; its workspace is free afterwards."""
        for _ in prefill.slices():
            self.tell_progress(prefill.done_fraction)
            yield True
        self.needs = self.needs.after_reading()


class PrefillRequest(Request):
    """Reads a document and hands it over."""

    def __init__(
        self, resources: Resources, token_ids: torch.Tensor, keep_scores: bool, sink: Sink, deadline: float | None
    ) -> None:
        needs = resources.prefill_needs(len(token_ids), keep_document=True, leaves_document=True)
        super().__init__(resources, needs, len(token_ids), sink, deadline)
        self.document: Document | None = None
        """Handed over to the reader."""
        self._token_ids, self._keep_scores = token_ids, keep_scores
        self._prefill: Prefill | None = None

    def begin(self) -> Iterator[bool]:
        self._prefill = self.resources.prefill(self._token_ids, keep_document=True, keep_scores=self._keep_scores)
        return self._work(self._prefill)

    def free(self) -> None:
        if self._prefill is not None:
            self._prefill.close()
            if self._prefill.document is not None and self.document is None:
                self._prefill.document.close()

    def _work(self, prefill: Prefill) -> Iterator[bool]:
        yield from self.read(prefill)
        assert prefill.document is not None
        self.sink.emit(DocumentReady(prefill.document))
        self.document = prefill.document


class ScoreRequest(Request):
    """Scores a text and keeps nothing."""

    def __init__(self, resources: Resources, token_ids: torch.Tensor, sink: Sink, deadline: float | None) -> None:
        needs = resources.prefill_needs(len(token_ids), keep_document=False)
        super().__init__(resources, needs, len(token_ids), sink, deadline)
        self._token_ids = token_ids
        self._prefill: Prefill | None = None

    def begin(self) -> Iterator[bool]:
        self._prefill = self.resources.prefill(self._token_ids, keep_document=False, keep_scores=True)
        return self._work(self._prefill)

    def free(self) -> None:
        if self._prefill is not None:
            self._prefill.close()

    def _work(self, prefill: Prefill) -> Iterator[bool]:
        yield from self.read(prefill)
        assert prefill.scores is not None
        for start in range(0, self.tokens, SCORES_TOKENS):
            while not self.sink.ready():
                yield False
            self.sink.emit(Scores(start, prefill.scores[start : start + SCORES_TOKENS]))
            yield True
