"""Requests that append to a document: generation, and the scoring of continuations."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from reformer_core.admission import Needs
from reformer_core.document import Document
from reformer_core.events import ContinuationScored, Sink
from reformer_core.extend import extend
from reformer_core.prefill import Prefill
from reformer_core.requests import Request, Resources
from reformer_core.sampling_params import SamplingParams
from reformer_core.session import Session, tail_pages_needed
from reformer_core.stopping import OutputText


class SessionRequest(Request):
    """Opens a session on a document, with all pages that its tail can come to need."""

    def __init__(
        self,
        resources: Resources,
        needs: Needs,
        document: Document | None,
        tail_pages: int,
        tokens: int,
        sink: Sink,
        deadline: float | None,
    ) -> None:
        """Args:
        needs: besides the tail's pages.
        document: None: it will be there when the session is opened.
        """
        super().__init__(resources, replace(needs, pages=needs.pages + tail_pages), tokens, sink, deadline)
        self._document = document
        self._session: Session | None = None
        self._tail_pages_needed = tail_pages
        self._tail_pages: list[int] = []  # until the session has them
        if document is not None:
            document.acquire()  # it may be closed while this waits

    @property
    def session(self) -> Session:
        """Where tokens are appended; there as soon as it is open."""
        assert self._session is not None
        return self._session

    def free(self) -> None:
        if self._session is not None:
            self._session.close()
        self.resources.pool.release(self._tail_pages)
        self._tail_pages = []
        if self._document is not None:
            self._document.release()
            self._document = None

    def _take_pages(self) -> None:
        self._tail_pages = self.resources.pool.allocate(self._tail_pages_needed)

    def _open(self) -> Session:
        assert self._document is not None
        self._session = Session(self.resources.table, self._document, self._tail_pages)
        self._tail_pages = []
        return self._session


class GenerateRequest(SessionRequest):
    """Continues a document, a prompt, or a document followed by a prompt. When its work is done, it can be decoded."""

    def __init__(
        self,
        resources: Resources,
        document: Document | None,
        prompt_ids: torch.Tensor,
        params: SamplingParams,
        output: OutputText,
        sink: Sink,
        deadline: float | None,
    ) -> None:
        read = len(prompt_ids) if document is None else document.tokens
        appended = params.max_tokens + (0 if document is None else len(prompt_ids))
        appended = min(appended, resources.model.config.max_tokens - read)
        tail_pages = tail_pages_needed(resources.table, read, appended)
        needs = Needs(0) if document is not None else resources.prefill_needs(read, keep_document=True)
        super().__init__(resources, needs, document, tail_pages, len(prompt_ids), sink, deadline)
        self.params, self.output, self.prompt_ids = params, output, prompt_ids
        self.generated = 0
        self.was_parked = False
        """Whether its reader was ever so far behind that it was left out of a step."""
        self.last_id = -1
        self._prefill: Prefill | None = None

    def begin(self) -> Iterator[bool]:
        self._take_pages()
        if self._document is not None:
            return self._read_after_document()
        self._prefill = self.resources.prefill(self.prompt_ids, keep_document=True, keep_scores=False)
        return self._read_alone(self._prefill)

    def note_token(self, id: int) -> None:
        """A token was generated."""
        self.generated += 1
        self.last_id = id
        self.note_first_token()

    @property
    def has_to_merge(self) -> bool:
        """Whether the session's tail has to be merged before the next token is appended."""
        return self.session.tail_is_full and self.session.length < self.resources.model.config.max_tokens

    def merge_tail(self) -> Iterator[bool]:
        """The work to be done when it has to."""
        for _ in self.session.merge_slices():
            yield True

    def free(self) -> None:
        if self._prefill is not None:
            self._prefill.close()
        super().free()

    def _read_alone(self, prefill: Prefill) -> Iterator[bool]:
        """The prompt is all there is: it is read as a document that nobody else sees."""
        yield from self.read(prefill)
        self._document = prefill.document
        self._open()

    def _read_after_document(self) -> Iterator[bool]:
        session, done = self._open(), 0
        for logits in extend(self.resources.model, session, self.prompt_ids):
            done += len(logits)
            self.tell_progress(done / self.tokens)
            yield True
        if self.has_to_merge:
            yield from self.merge_tail()


class ContinuationsRequest(SessionRequest):
    """Scores continuations of a document, one after the other."""

    def __init__(
        self,
        resources: Resources,
        document: Document,
        continuations: Sequence[torch.Tensor],
        sink: Sink,
        deadline: float | None,
    ) -> None:
        lengths = [len(token_ids) for token_ids in continuations]
        tail_pages = tail_pages_needed(resources.table, document.tokens, max(lengths))
        super().__init__(resources, Needs(0), document, tail_pages, sum(lengths), sink, deadline)
        self._continuations = continuations

    def begin(self) -> Iterator[bool]:
        self._take_pages()
        return self._work()

    def _work(self) -> Iterator[bool]:
        model, session, done = self.resources.model, self._open(), 0
        for index, token_ids in enumerate(self._continuations):
            session.rewind()
            targets = token_ids.long().to(model.device).unsqueeze(-1)
            scores = [_log_probabilities(session.table.next_logits[session.row, None], targets[:1])]
            read = 1
            for logits in extend(model, session, token_ids[:-1]):
                scores.append(_log_probabilities(logits, targets[read : read + len(logits)]))
                read += len(logits)
                self.tell_progress((done + read) / self.tokens)
                yield True
            done += len(token_ids)
            while not self.sink.ready():
                yield False
            self.sink.emit(ContinuationScored(index, torch.cat(scores).cpu()))
            yield True


def _log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Float32 [k, vocab] and int64 [k, 1] -> float32 [k]."""
    return logits.log_softmax(dim=-1).gather(-1, targets).squeeze(-1)
