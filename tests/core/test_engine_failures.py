"""How requests end early: cancelled, overdue, by an error, for want of memory. Nothing is lost, nobody else ends."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from reformer_core import Document, Engine, ReformerModel, Request, SamplingParams
from reformer_core.decoding import Decoding
from reformer_core.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidTokensError,
    OutOfMemoryError,
    QueueFullError,
)
from reformer_core.events import DocumentReady, Event, FinishReason, Progress, Scores, Started, Token
from reformer_core.session_requests import GenerateRequest
from tests.core.engines import Reader, check_idle, run, run_until, text_model, tiny_engine
from tests.core.tiny import random_tokens

GREEDY = SamplingParams(max_tokens=200, temperature=0.0)
NOTHING = torch.empty(0, dtype=torch.long)


class BrokenError(Exception):
    """A bug."""


@pytest.fixture(scope="module")
def model() -> ReformerModel:
    return text_model(axial_pos_shape=(16, 64))


@pytest.fixture
def engine(model: ReformerModel) -> Engine:
    return tiny_engine(model, max_running=2)


@pytest.fixture
def document(engine: Engine, model: ReformerModel) -> Document:
    return engine.prefill(random_tokens(model, 300))


def keep_busy(engine: Engine, document: Document) -> list[Request]:
    """As many generations as can run, their readers asleep: whatever comes now has to wait."""
    requests = [engine.submit_generate(document, NOTHING, GREEDY, Reader(room=0)) for _ in range(engine.max_running)]
    run_until(engine, lambda: all(request.phase == "decode" for request in requests))
    return requests


Submit = Callable[[Engine, Document, Reader, float | None], Request]

SUBMIT: dict[str, Submit] = {
    "prefill": lambda e, d, r, t: e.submit_prefill(random_tokens(e.model, 400), r, keep_scores=True, deadline=t),
    "score": lambda e, d, r, t: e.submit_score(random_tokens(e.model, 400), r, deadline=t),
    "generate": lambda e, d, r, t: e.submit_generate(d, random_tokens(e.model, 300), GREEDY, r, deadline=t),
    "prompt": lambda e, d, r, t: e.submit_generate(None, random_tokens(e.model, 300), GREEDY, r, deadline=t),
    "continuations": lambda e, d, r, t: e.submit_continuations(d, [random_tokens(e.model, 300)] * 3, r, deadline=t),
}


@pytest.fixture(params=SUBMIT)
def submit(request: pytest.FixtureRequest) -> Submit:
    return SUBMIT[request.param]


# -- cancelled and overdue, in every phase


def test_cancelled_while_it_waits(engine: Engine, document: Document, submit: Submit) -> None:
    others, reader = keep_busy(engine, document), Reader()
    request = submit(engine, document, reader, None)
    engine.step()
    assert request.phase == "waiting"
    for _ in range(2):
        engine.cancel(request)
    assert isinstance(reader.error, CancelledError)
    assert len(reader.events) == 1
    for other in others:
        engine.cancel(other)
    check_idle(engine, [document])


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_cancelled_while_it_reads(engine: Engine, document: Document, submit: Submit, slices: int) -> None:
    reader = Reader(room=0)
    request = submit(engine, document, reader, None)
    for _ in range(slices):
        engine.step()
    assert request.phase == "prefill"
    for _ in range(2):
        engine.cancel(request)
    assert isinstance(reader.error, CancelledError)
    assert {type(event) for event in reader.events[:-1]} <= {Started, Progress}
    check_idle(engine, [document])
    assert not engine.step()


@pytest.mark.parametrize("room", [0, 3, None])
def test_cancelled_while_it_decodes(engine: Engine, document: Document, room: int | None) -> None:
    """Its reader asleep from the beginning, after some tokens, or awake."""
    reader = Reader(room)
    request = engine.submit_generate(document, NOTHING, GREEDY, reader)
    for _ in range(10):
        engine.step()
    assert request.phase == "decode"
    assert len(reader.tokens) == (room if room is not None else len(reader.tokens))
    engine.cancel(request)
    engine.cancel(request)
    assert isinstance(reader.error, CancelledError)
    check_idle(engine, [document])


def test_cancelled_when_it_is_over(engine: Engine, document: Document) -> None:
    reader = Reader()
    request = engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=2), reader)
    run(engine, request)
    engine.cancel(request)
    assert reader.reason == FinishReason.LENGTH


@pytest.mark.parametrize("phase", ["waiting", "prefill", "decode"])
def test_overdue(engine: Engine, document: Document, phase: str) -> None:
    reader = Reader(room=0)
    others = keep_busy(engine, document) if phase == "waiting" else []
    deadline = time.monotonic() + 3600
    if phase == "decode":
        request = engine.submit_generate(document, NOTHING, GREEDY, reader, deadline=deadline)
    else:
        request = engine.submit_prefill(random_tokens(engine.model, 400), reader, deadline=deadline)
    for _ in range(3):
        engine.step()
    assert request.phase == phase
    request.deadline = time.monotonic() - 1e-9
    engine.step()
    assert isinstance(reader.error, DeadlineExceededError)
    for other in others:
        assert other.phase == "decode"
        engine.cancel(other)
    check_idle(engine, [document])


def test_a_deadline_that_has_passed_when_it_is_submitted(engine: Engine, document: Document, submit: Submit) -> None:
    reader = Reader()
    submit(engine, document, reader, time.monotonic() - 1)
    engine.step()
    assert isinstance(reader.error, DeadlineExceededError)
    check_idle(engine, [document])


def test_fail_all(engine: Engine, document: Document) -> None:
    keep_busy(engine, document)
    error, readers = BrokenError("the end"), [Reader(), Reader()]
    engine.fail_all(error)
    run_until(engine, lambda: not engine.step())
    for reader in readers:
        engine.submit_score(random_tokens(engine.model, 400), reader)
    engine.step()
    engine.fail_all(error)
    assert [reader.error for reader in readers] == [error, error]
    check_idle(engine, [document])


# -- the memory behind a request


def test_a_cancelled_read_holds_no_workspace(engine: Engine, model: ReformerModel) -> None:
    """The streams go with the request, even while somebody still has it in hand."""
    request = engine.submit_score(random_tokens(model, 1000), Reader())
    engine.step()
    generator = request.work
    assert engine.load().workspace_bytes > 0
    engine.cancel(request)
    assert engine.load().workspace_bytes == 0
    assert request.work is not generator
    assert getattr(generator, "gi_frame", None) is not None
    del generator


def test_slow_reader_of_scores_holds_no_memory(engine: Engine, model: ReformerModel) -> None:
    reader = Reader(room=0)
    request = engine.submit_score(random_tokens(model, 400), reader)
    run_until(engine, lambda: not engine.step())
    assert (request.phase, engine.load().workspace_bytes, engine.pool.used_pages) == ("prefill", 0, 0)
    reader.room = 1
    run(engine, request)
    assert len(reader.scores) == 400


def test_closed_document_lives_on(engine: Engine, document: Document) -> None:
    expected = [token.id for token in engine.generate(document, NOTHING, replace(GREEDY, max_tokens=20))]
    reader = Reader()
    waiting = Reader()
    request = engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=20), reader)
    later = engine.submit_continuations(document, [random_tokens(engine.model, 3)], waiting)
    engine.step()
    document.close()
    document.close()
    assert engine.documents == []
    with pytest.raises(InvalidTokensError, match="closed"):
        engine.submit_generate(document, NOTHING, GREEDY, Reader())
    run(engine, request, later)
    assert reader.ids == expected
    assert document.freed
    check_idle(engine)


def test_closed_while_requests_wait(engine: Engine, document: Document) -> None:
    others, reader = keep_busy(engine, document), Reader()
    request = engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=5), reader)
    document.close()
    for other in others:
        engine.cancel(other)
    run(engine, request)
    assert len(reader.ids) == 5
    check_idle(engine)


# -- errors


def test_error_in_a_slice(engine: Engine, document: Document, submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    other, reader = Reader(), Reader()
    good = engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=30), other)
    run_until(engine, lambda: good.phase == "decode")
    request, error = submit(engine, document, reader, None), BrokenError("in a slice")

    def broken() -> Iterator[bool]:
        yield True
        raise error

    work = broken()
    engine.step()
    request.work = work
    run(engine, good, request)
    assert reader.error is error
    assert len(other.ids) == 30
    check_idle(engine, [document])


@pytest.mark.parametrize("where", ["session.Session.rewind", "prefill.Prefill.slices", "session.SessionTable.take_row"])
def test_error_at_the_beginning(
    engine: Engine, document: Document, submit: Submit, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """After pages were taken: when the session is opened, or the reading begins."""
    reader, other = Reader(), Reader()
    request = submit(engine, document, reader, None)
    with monkeypatch.context() as patch:
        patch.setattr(f"reformer_core.{where}", _raise(BrokenError("no session")))
        run_until(engine, lambda: request.phase in ("decode", "done"))
    if not reader.over:
        engine.cancel(request)
    run(engine, engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=3), other))
    assert len(other.ids) == 3
    for each in engine.documents:
        if each is not document:
            each.close()
    check_idle(engine, [document])


def test_error_in_a_decode_step_ends_the_batch_and_nobody_else(
    engine: Engine, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers, parked, score = [Reader(), Reader(room=2)], Reader(), Reader()
    requests = [engine.submit_generate(document, NOTHING, GREEDY, reader) for reader in readers]
    run_until(engine, lambda: len(readers[1].ids) == 2 and len(readers[0].ids) > 4)
    waiting = engine.submit_score(random_tokens(engine.model, 100), score)
    with monkeypatch.context() as patch:
        patch.setattr("reformer_core.decode_graphs.DecodeSteps.take", _raise(BrokenError("in a step")))
        engine.step()
    assert isinstance(readers[0].error, BrokenError)
    assert requests[1].phase == "decode"
    readers[1].room = None
    run(engine, requests[1], waiting)
    assert len(readers[1].ids) == 200
    assert len(score.scores) == 100
    assert parked.events == []
    check_idle(engine, [document])


def test_error_for_one_of_a_batch(engine: Engine, document: Document) -> None:
    """In turning its tokens into text."""
    readers = [Reader(), Reader()]
    requests = [engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=9), reader) for reader in readers]
    requests[0].output.push = _raise(BrokenError("no text"))  # type: ignore[attr-defined]
    run(engine, *requests)
    assert isinstance(readers[0].error, BrokenError)
    assert len(readers[1].ids) == 9
    check_idle(engine, [document])


@pytest.mark.parametrize("kind", [Started, Progress, DocumentReady, Scores, Token])
def test_reader_that_raises(engine: Engine, document: Document, kind: type[Event], submit: Submit) -> None:
    def refuse(event: Event) -> None:
        if isinstance(event, kind):
            raise BrokenError(kind.__name__)

    reader, other = Reader(on_event=refuse), Reader()
    requests = [
        submit(engine, document, reader, None),
        engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=9), other),
    ]
    run(engine, *requests)
    if any(isinstance(event, kind) for event in reader.events):
        assert isinstance(reader.error, BrokenError)
    elif DocumentReady in map(type, reader.events):
        reader.document.close()
    assert len(other.ids) == 9
    check_idle(engine, [document])


def test_reader_that_raises_to_the_last(engine: Engine, document: Document, submit: Submit, caplog: Any) -> None:
    class Hopeless:
        owner = None

        def ready(self) -> bool:
            return True

        def emit(self, event: Event) -> None:
            raise BrokenError(str(event))

    request = submit(engine, document, Hopeless(), None)  # type: ignore[arg-type]
    run(engine, request)
    assert "reader" in caplog.text
    check_idle(engine, [document])


def test_readiness_that_raises(engine: Engine, document: Document) -> None:
    readers = [Reader(), Reader()]
    requests = [engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=9), reader) for reader in readers]
    readers[0].ready = _raise(BrokenError("ready"))  # type: ignore[method-assign]
    run(engine, *requests)
    assert isinstance(readers[0].error, BrokenError)
    assert len(readers[1].ids) == 9
    check_idle(engine, [document])


def test_reader_that_cancels(engine: Engine, document: Document, submit: Submit) -> None:
    """Its own request and another one's, from within the event: nothing comes after the end, nothing is lost."""
    for kind in (Started, Progress, DocumentReady, Scores, Token):
        requests: list[Request] = []

        def cancel(event: Event, kind: type = kind, requests: list[Request] = requests) -> None:
            if isinstance(event, kind):
                for request in requests:
                    engine.cancel(request)

        readers = [Reader(on_event=cancel), Reader()]
        requests.append(submit(engine, document, readers[0], None))
        requests.append(engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=50), readers[1]))
        run(engine, *requests)
        assert all(reader.over for reader in readers)
        for each in readers[0].events:
            if isinstance(each, DocumentReady):
                each.document.close()
        check_idle(engine, [document])


@pytest.mark.parametrize("canceller", [0, 1])
def test_reader_that_cancels_its_neighbour_in_the_batch(
    engine: Engine, document: Document, monkeypatch: pytest.MonkeyPatch, canceller: int
) -> None:
    """Whether the other one's token was emitted already or comes next: no work is done for it any more."""
    requests: list[Request] = []

    def cancel(event: Event) -> None:
        if isinstance(event, Token) and len(readers[canceller].ids) == 5:
            engine.cancel(requests[1 - canceller])

    readers = [Reader(), Reader()]
    readers[canceller] = Reader(on_event=cancel)
    appended: list[set[str]] = []
    append = Decoding.append

    def watched(self: Decoding, batch: Sequence[GenerateRequest]) -> None:
        appended.append({request.phase for request in batch})
        append(self, batch)

    monkeypatch.setattr(Decoding, "append", watched)
    requests += [engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=9), reader) for reader in readers]
    run(engine, *requests)
    assert isinstance(readers[1 - canceller].error, CancelledError)
    assert len(readers[canceller].ids) == 9
    assert set.union(*appended) == {"decode"}
    check_idle(engine, [document])


def test_reader_that_cancels_when_it_is_asked(engine: Engine, document: Document) -> None:
    class Asked(Reader):
        def ready(self) -> bool:
            engine.cancel(other)
            return False

    tokens = [random_tokens(engine.model, 3)] * 2
    request = engine.submit_continuations(document, tokens, Asked())
    engine.step()
    other = engine.submit_score(random_tokens(engine.model, 400), Reader())
    run_until(engine, lambda: not engine.step())
    assert (request.phase, other.phase) == ("prefill", "done")
    engine.cancel(request)
    check_idle(engine, [document])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 10 bytes")])
def test_the_devices_lack_of_memory(
    engine: Engine, document: Document, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    reader = Reader()
    monkeypatch.setattr("reformer_core.prefill.Prefill.slices", _raise(error))
    run(engine, engine.submit_score(random_tokens(engine.model, 100), reader))
    assert isinstance(reader.error, OutOfMemoryError)
    check_idle(engine, [document])


def test_interrupted_blocking_calls(engine: Engine, document: Document) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    for call in (engine.prefill, engine.score):
        with pytest.raises(KeyboardInterrupt):
            call(random_tokens(engine.model, 400), on_progress=interrupt)
    tokens = engine.generate(document, NOTHING, GREEDY)
    next(tokens)
    tokens.close()  # type: ignore[attr-defined]
    check_idle(engine, [document])


# -- memory


def test_queue_full(engine: Engine, document: Document, submit: Submit) -> None:
    engine.max_waiting = engine._scheduler.waiting._limit = 2
    busy = keep_busy(engine, document)
    waiting = [submit(engine, document, Reader(), None) for _ in range(2)]
    refused = Reader()
    with pytest.raises(QueueFullError) as caught:
        submit(engine, document, refused, None)
    assert caught.value.waiting == 2
    assert refused.events == []
    for request in (*busy, *waiting):
        engine.cancel(request)
    check_idle(engine, [document])


def test_open_sessions_are_counted(engine: Engine, document: Document) -> None:
    """What waits for a session that is open would wait for ever, if nobody else takes turns."""
    sessions = [engine.open(document) for _ in range(engine.max_running)]
    with pytest.raises(OutOfMemoryError):
        engine.open(document)
    with pytest.raises(OutOfMemoryError):
        engine.score(random_tokens(engine.model, 10))
    assert engine.load().waiting == 0
    for session in sessions:
        session.close()
    assert len(engine.score(random_tokens(engine.model, 10))) == 10
    check_idle(engine, [document])


def _raise(error: Exception) -> Any:
    def function(*_: object, **__: object) -> Any:
        raise error

    return function
