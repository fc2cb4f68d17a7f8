"""Engines on tiny models, and readers that remember what they were told, for the tests of the engine."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from reformer_core import Document, Engine, MemoryPlan, ReformerModel, Request
from reformer_core.events import (
    ContinuationScored,
    DocumentReady,
    Event,
    Failed,
    Finished,
    FinishReason,
    Progress,
    Scores,
    Token,
)
from reformer_core.tokenizers import ByteTokenizer
from tests.core.tiny import tiny_model

MANY_STEPS = 5000


class Reader:
    """A sink with room for so many events of the kinds that wait for it; None: for any number."""

    def __init__(
        self, room: int | None = None, on_event: Callable[[Event], None] | None = None, owner: str = ""
    ) -> None:
        self.owner = owner
        self.events: list[Event] = []
        self.room = room
        self._on_event = on_event

    def ready(self) -> bool:
        return self.room is None or self.room > 0

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if self.room is not None and isinstance(event, Token | Scores | ContinuationScored):
            self.room -= 1
        if self._on_event is not None:
            self._on_event(event)

    @property
    def over(self) -> bool:
        """Whether it has got its last event. What is wrong shows here, for the engine survives a reader that raises."""
        ends = [number for number, event in enumerate(self.events, 1) if isinstance(event, Finished | Failed)]
        assert ends in ([], [len(self.events)]), f"{self.events} after the end"
        assert self.room is None or self.room >= 0, "something came though there was no room"
        return bool(ends)

    @property
    def error(self) -> Exception:
        """How it failed."""
        last = self.events[-1]
        assert self.over
        assert isinstance(last, Failed), last
        return last.error

    @property
    def reason(self) -> FinishReason:
        """How it ended well."""
        last = self.events[-1]
        assert self.over
        assert isinstance(last, Finished), last
        return last.reason

    @property
    def tokens(self) -> list[Token]:
        return [event for event in self.events if isinstance(event, Token)]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def document(self) -> Document:
        (document,) = [event.document for event in self.events if isinstance(event, DocumentReady)]
        return document

    @property
    def scores(self) -> torch.Tensor:
        return torch.cat([event.logprobs for event in self.events if isinstance(event, Scores)])

    @property
    def continuations(self) -> list[torch.Tensor]:
        scored = [event for event in self.events if isinstance(event, ContinuationScored)]
        assert [event.index for event in scored] == list(range(len(scored)))
        return [event.logprobs for event in scored]

    def kinds(self) -> list[str]:
        """The events' kinds, each only once in a row, without Progress."""
        kinds = [type(event).__name__ for event in self.events if not isinstance(event, Progress)]
        return [kind for before, kind in zip([None, *kinds], kinds, strict=False) if kind != before]


def text_model(**config: Any) -> ReformerModel:
    """A tiny model of bytes, without an end-of-sequence token."""
    return tiny_model(**{"vocab_size": ByteTokenizer().vocab_size, "eos_token_id": None, **config})


def tiny_engine(model: ReformerModel, *, pages: int | None = None, tokens: int | None = None, **limits: int) -> Engine:
    """An engine for documents of `tokens` (default: all positions) with so many pages (default: for four of them)."""
    plan = MemoryPlan(model.config, model.dtype, tokens or model.config.max_tokens)
    sessions = limits.setdefault("max_running", 8)
    page_bytes = 4 * (plan.page_bytes + plan.tail_bytes) if pages is None else pages * plan.layout.page_bytes
    memory_bytes = plan.fixed_bytes(sessions) + page_bytes
    return Engine(model, ByteTokenizer(), memory_bytes=memory_bytes, **limits)


def run(engine: Engine, *requests: Request) -> None:
    """Takes turns until these requests (default: all) are over."""
    for _ in range(MANY_STEPS):
        if all(request.phase == "done" for request in requests) and (requests or not is_busy(engine)):
            return
        assert engine.step(), "nothing can be done"
    raise AssertionError("it takes too long")


def run_until(engine: Engine, condition: Callable[[], bool]) -> None:
    """Takes turns until the condition holds."""
    for _ in range(MANY_STEPS):
        if condition():
            return
        engine.step()
    raise AssertionError("it takes too long")


def is_busy(engine: Engine) -> bool:
    load = engine.load()
    return bool(load.running or load.waiting)


def check_idle(engine: Engine, documents: Sequence[Document] = ()) -> None:
    """Nothing is held but by these documents."""
    engine.pool.check([page for document in documents for page in document.pages])
    assert engine.table.free_rows == engine.max_running
    load = engine.load()
    assert (load.running, load.waiting, load.workspace_bytes) == (0, 0, 0)
    assert set(engine.documents) == set(documents)
