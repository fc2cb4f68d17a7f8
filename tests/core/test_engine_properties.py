"""Any order of submissions, cancellations, turns, sleeping readers and closed documents: no page is ever lost, every
request ends exactly once, and in the end the pool is whole.
"""

import time
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from reformer_core import Document, ReformerModel, Request, SamplingParams
from reformer_core.blocking import OpenSession
from reformer_core.errors import CancelledError, DeadlineExceededError, OutOfMemoryError, QueueFullError
from reformer_core.events import DocumentReady, Failed
from tests.core.engines import Reader, check_idle, is_busy, run_until, text_model, tiny_engine
from tests.core.tiny import random_tokens

ROOMS = st.one_of(st.none(), st.integers(0, 5))


class EngineMachine(RuleBasedStateMachine):
    """An engine with so few pages that requests wait and are refused, and tails so short that they are merged."""

    model: ClassVar[ReformerModel]
    documents = Bundle("documents")
    requests = Bundle("requests")
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.engine = tiny_engine(self.model, tokens=120, pages=100, max_running=4, max_waiting=5)
        self.all_requests: list[tuple[Request, Reader]] = []
        self.all_documents: list[Document] = []
        self.all_sessions: list[OpenSession] = []
        self.seed = 0

    def tokens(self, count: int) -> torch.Tensor:
        self.seed += 1
        return random_tokens(self.model, count, self.seed)

    def submit(self, room: int | None, submit: Callable[[Reader], Request]) -> object:
        reader = Reader(room)
        try:
            request = submit(reader)
        except (OutOfMemoryError, QueueFullError):
            assert reader.events == []
            return multiple()
        self.all_requests.append((request, reader))
        return request, reader

    @rule(target=requests, count=st.integers(1, 200), room=ROOMS, scores=st.booleans())
    def prefill(self, count: int, room: int | None, scores: bool) -> object:
        return self.submit(room, lambda r: self.engine.submit_prefill(self.tokens(count), r, keep_scores=scores))

    @rule(target=requests, count=st.integers(1, 200), room=ROOMS)
    def score(self, count: int, room: int | None) -> object:
        return self.submit(room, lambda r: self.engine.submit_score(self.tokens(count), r))

    @rule(target=requests, document=documents, count=st.integers(0, 70), most=st.integers(1, 80), room=ROOMS)
    def generate(self, document: Document, count: int, most: int, room: int | None) -> object:
        if document.closed:
            return multiple()
        params = SamplingParams(max_tokens=most, seed=self.seed)
        return self.submit(room, lambda r: self.engine.submit_generate(document, self.tokens(count), params, r))

    @rule(target=requests, count=st.integers(1, 150), most=st.integers(1, 80), room=ROOMS)
    def generate_alone(self, count: int, most: int, room: int | None) -> object:
        params = SamplingParams(max_tokens=most, temperature=0)
        return self.submit(room, lambda r: self.engine.submit_generate(None, self.tokens(count), params, r))

    @rule(target=requests, document=documents, counts=st.lists(st.integers(1, 70), min_size=1, max_size=4), room=ROOMS)
    def continuations(self, document: Document, counts: list[int], room: int | None) -> object:
        if document.closed:
            return multiple()
        tokens = [self.tokens(count) for count in counts]
        return self.submit(room, lambda r: self.engine.submit_continuations(document, tokens, r))

    @rule(request=consumes(requests))
    def cancel(self, request: tuple[Request, Reader]) -> None:
        over = request[1].over
        self.engine.cancel(request[0])
        self.engine.cancel(request[0])
        assert over or isinstance(request[1].error, CancelledError)

    @rule(request=consumes(requests))
    def deadline(self, request: tuple[Request, Reader]) -> None:
        over = request[1].over
        request[0].deadline = time.monotonic() - 1
        self.engine.step()
        assert over or isinstance(request[1].error, DeadlineExceededError)

    @rule(request=requests, room=ROOMS)
    def wake(self, request: tuple[Request, Reader], room: int | None) -> None:
        request[1].room = room

    @rule(target=documents, turns=st.integers(1, 40))
    def turns(self, turns: int) -> object:
        for _ in range(turns):
            self.engine.step()
        ready = [e.document for _, reader in self.all_requests for e in reader.events if isinstance(e, DocumentReady)]
        new = [document for document in ready if document not in self.all_documents]
        self.all_documents += new
        return multiple(*new)

    @rule(document=consumes(documents))
    def close(self, document: Document) -> None:
        document.close()

    @rule(target=sessions, document=documents)
    def open(self, document: Document) -> object:
        if document.closed:
            return multiple()
        try:
            session = self.engine.open(document)
        except OutOfMemoryError:
            return multiple()
        self.all_sessions.append(session)
        return session

    @rule(session=sessions, count=st.integers(1, 50))
    def extend(self, session: OpenSession, count: int) -> None:
        before = session.length
        try:
            assert len(session.extend(self.tokens(count))) == count
        except OutOfMemoryError:
            assert before <= session.length < before + count

    @rule(session=consumes(sessions))
    def close_session(self, session: OpenSession) -> None:
        session.close()

    @invariant()
    def no_page_is_lost_or_given_twice(self) -> None:
        free = self.engine.pool._free
        assert len(set(free)) == len(free)
        load = self.engine.load()
        assert load.running <= 4
        assert load.waiting <= 5
        assert all(reader.over == (request.phase == "done") for request, reader in self.all_requests)
        held = [page for document in self.engine.documents for page in document.pages]
        assert len(set(held)) == len(held)
        assert not set(held) & set(free)

    @invariant()
    def nothing_fails_half_way(self) -> None:
        for _, reader in self.all_requests:
            for event in reader.events:
                if isinstance(event, Failed):
                    assert isinstance(event.error, CancelledError | DeadlineExceededError), event.error

    def teardown(self) -> None:
        for session in self.all_sessions:
            session.close()
        for _, reader in self.all_requests:
            reader.room = None
        run_until(self.engine, lambda: not is_busy(self.engine))
        assert all(reader.over for _, reader in self.all_requests)
        self.turns(1)
        for document in self.all_documents:
            document.close()
        check_idle(self.engine)


@pytest.mark.usefixtures("small_tails", "many_slices")
@pytest.mark.parametrize("kinds", [("lsh",), ("local", "lsh"), ("local",)])
def test_any_order_of_events(kinds: tuple[str, ...]) -> None:
    model = text_model(attn_layers=kinds, axial_pos_shape=(4, 64))

    class Machine(EngineMachine):
        pass

    Machine.model = model
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
