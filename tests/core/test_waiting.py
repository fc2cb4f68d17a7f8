"""Whose turn it is among those that wait: any order of arrivals, cancellations and beginnings is fair to all owners."""

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_core import SamplingParams
from reformer_core.errors import DeadlineExceededError, QueueFullError
from reformer_core.turns import Shares
from reformer_core.waiting import WaitingRequests, may_wait
from tests.core.engines import Reader, check_idle, run, run_until, text_model, tiny_engine
from tests.core.tiny import random_tokens


def request(owner: str) -> Any:
    return SimpleNamespace(owner=owner)


def queue(limit: int = 1000) -> tuple[WaitingRequests, Shares[Any]]:
    owners: Shares[Any] = Shares()
    return WaitingRequests(limit, owners), owners


def test_who_has_had_least_time_comes_first_and_then_one_of_each() -> None:
    waiting, owners = queue()
    many, one = [request("many") for _ in range(5)], request("one")
    owners.join("many")
    owners.join("one")
    for each in (*many, one):
        waiting.add(each)
    assert list(waiting) == [many[0], one, *many[1:]]
    owners.took("many", 1.0)
    assert list(waiting) == [one, *many]
    owners.took("one", 2.0)
    waiting.remove(many[0])
    assert list(waiting) == [many[1], one, *many[2:]]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 1.0)), max_size=80))
def test_owners_that_always_wait_begin_in_step(costs: list[tuple[str, float]]) -> None:
    """Each begin costs its owner some time: their times never differ by more than the dearest one."""
    waiting, owners = queue()
    had = Counter[str]()
    for owner in "abc":
        owners.join(owner)
        for _ in costs:
            waiting.add(request(owner))
    for _, seconds in costs:
        first = next(iter(waiting))
        waiting.remove(first)
        owners.took(first.owner, seconds)
        had[first.owner] += seconds
        assert max(had[owner] for owner in "abc") - min(had[owner] for owner in "abc") <= 1.0 + 1e-9
    assert sum(waiting.counts.values()) == len(waiting) == len(list(waiting))


@given(st.lists(st.sampled_from("aaab"), max_size=40), st.integers(1, 8))
def test_the_queue_is_bounded_and_nobody_can_fill_it_for_others(arrivals: list[str], limit: int) -> None:
    waiting, _ = queue(limit)
    for owner in arrivals:
        counts = waiting.counts
        if not may_wait(counts, owner, limit):
            with pytest.raises(QueueFullError, match=str(limit)):
                waiting.to_give_way(owner)
            assert counts.get(owner, 0) >= max(counts.values()) - 1
            continue
        leaves = waiting.to_give_way(owner)
        if leaves is not None:
            assert counts[leaves.owner] > counts.get(owner, 0) + 1
            waiting.remove(leaves)
        waiting.add(request(owner))
        assert len(waiting) <= limit


def test_an_owner_with_many_requests_gives_way_in_the_engine() -> None:
    model = text_model()
    engine = tiny_engine(model, max_running=1, max_waiting=3)
    params = SamplingParams(max_tokens=5, temperature=0)
    flood = [Reader(owner="many") for _ in range(4)]
    requests = []
    for number, reader in enumerate(flood):
        requests.append(engine.submit_generate(None, random_tokens(model, 5), params, reader))
        if number == 0:
            engine.step()
    with pytest.raises(QueueFullError):
        engine.submit_generate(None, random_tokens(model, 5), params, Reader(owner="many"))
    mine = Reader(owner="one")
    request = engine.submit_generate(None, random_tokens(model, 5), params, mine)
    assert isinstance(flood[-1].error, QueueFullError)
    run_until(engine, lambda: request.phase != "waiting")
    assert [each.phase for each in requests[2:]] == ["waiting", "done"]  # one of them came before
    run(engine)
    assert len(mine.ids) == 5
    check_idle(engine)


def test_work_that_would_be_too_late_isnt_begun() -> None:
    """While others want the time; alone, it gets its chance."""
    model = text_model()
    engine = tiny_engine(model, max_running=2)
    now = time.monotonic()
    text = random_tokens(model, model.config.max_tokens)
    run(engine, engine.submit_score(text, Reader()))
    [speed] = engine._scheduler._pace._tokens_per_second.values()
    busy = engine.submit_generate(None, text[:1], SamplingParams(max_tokens=400), Reader())
    run_until(engine, lambda: busy.phase == "decode")
    engine._scheduler._pace._tokens_per_second = dict.fromkeys(engine._scheduler._pace._tokens_per_second, speed / 1e6)
    late, in_time, alone = Reader(), Reader(), Reader()
    assert engine.submit_score(text, late, deadline=now + 60).phase == "waiting"
    run_until(engine, lambda: late.over)
    assert isinstance(late.error, DeadlineExceededError)
    assert "it would take" in str(late.error)
    assert late.kinds() == ["Failed"]
    run(engine, engine.submit_score(text, in_time))
    assert in_time.reason
    engine.cancel(busy)
    run(engine, engine.submit_score(text, alone, deadline=now + 60))
    assert alone.reason
    check_idle(engine)


def test_delays_are_told_from_what_was_seen() -> None:
    model = text_model()
    engine = tiny_engine(model, max_running=1)
    assert engine.load().retry_seconds == 1
    pace = engine._scheduler._pace
    for end in (10.0, 14.0, 18.0):
        pace.ended(engine.submit_score(random_tokens(model, 5), Reader()), end, well=True)
    assert len(engine._scheduler.waiting) == 3
    assert engine.load().retry_seconds == pytest.approx(12)
    run(engine)


def test_a_document_never_takes_the_room_of_what_was_there_before() -> None:
    """Owners take turns, so one that was asked for later can come first. It stays, and what waits must still fit."""
    model = text_model()
    engine = tiny_engine(model, max_running=1, pages=16)
    text = random_tokens(model, 20)
    short, long = SamplingParams(max_tokens=5), SamplingParams(max_tokens=model.config.max_tokens)
    readers = [Reader(owner="many") for _ in range(3)]
    for params, reader in zip((short, short, long), readers, strict=True):
        request = engine.submit_generate(None, text, params, reader)
        engine.step()
    others = [Reader(owner=f"other {number}") for number in range(2)]
    for reader in others:
        document = engine.submit_prefill(text, reader)
    assert request.needs.pages + 2 * document.needs.pages > engine.pool.total_pages
    run(engine)
    assert all(reader.reason for reader in (*readers, *others))
    check_idle(engine, [reader.document for reader in others])


def test_a_slow_reader_isnt_taken_for_a_slow_engine() -> None:
    model = text_model()
    engine = tiny_engine(model)
    params = SamplingParams(max_tokens=5, temperature=0)
    run(engine, engine.submit_generate(None, random_tokens(model, 5), params, Reader()))
    before = engine._scheduler._pace._seconds_per_token.cautious
    slow = Reader(room=2)
    request = engine.submit_generate(None, random_tokens(model, 5), params, slow)
    run_until(engine, lambda: not engine.step())
    time.sleep(0.5)
    slow.room = None
    run(engine, request)
    assert len(slow.ids) == 5
    assert engine._scheduler._pace._seconds_per_token.cautious == before
