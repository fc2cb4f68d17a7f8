"""What there is room for: workspaces, pages, and what is kept when all requests are over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_core.admission import Admission, Needs, holds, minus
from reformer_core.errors import OutOfMemoryError
from reformer_core.pages import PagePool
from reformer_core.session import Session
from reformer_core.session_table import SessionTable
from tests.core.tiny import random_tokens, read_document, tiny_model, tiny_pool

WORKSPACES = (1000, 250, 62)


@pytest.fixture(scope="module")
def pool() -> PagePool:
    return tiny_pool(tiny_model(), pages=100)


def admission(pool: PagePool) -> Admission:
    return Admission(pool, max_running=3, workspaces=WORKSPACES)


@pytest.mark.parametrize(
    ("workspace_bytes", "taken"),
    [
        (0, (0, 0, 0)),
        (62, (0, 0, 62)),
        (63, (0, 63, 0)),
        (250, (0, 250, 0)),
        (251, (251, 0, 0)),
        (1000, (1000, 0, 0)),
    ],
)
def test_the_smallest_workspace_that_is_large_enough(
    pool: PagePool, workspace_bytes: int, taken: tuple[int, ...]
) -> None:
    assert admission(pool).room_for(Needs(7, workspace_bytes)) == (1, 7, *taken)


def test_free(pool: PagePool) -> None:
    held = pool.allocate(40)
    running = [Needs(25, 600), Needs(15, 50).after_reading()]
    assert admission(pool).free(running) == (1, 60, 400, 250, 62)
    pool.release(held)


def test_only_what_is_taken_has_to_be_there() -> None:
    assert holds((1, -5, 0), (1, 0, 0))
    assert not holds((1, -5, 0), (1, 1, 0))
    assert not holds((0, 5, 5), (1, 0, 0))


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), max_size=8), st.tuples(*[st.integers(0, 20)] * 3))
def test_overtaking_delays_nobody(waiting: list[tuple[int, ...]], free: tuple[int, ...]) -> None:
    """As the scheduler admits: of what somebody lacks, nobody behind takes any; what was there for him still is."""
    left, now = free, free
    begun: list[int] = []
    passed_over: list[tuple[int, tuple[int, ...]]] = []
    for number, taken in enumerate(waiting):
        if holds(left, taken):
            begun.append(number)
            now = minus(now, taken)
        else:
            passed_over.append((number, left))
        left = minus(left, taken)
    assert min(now) >= 0
    for number, left_for_it in passed_over:
        for kind, wanted in enumerate(waiting[number]):
            behind = sum(waiting[other][kind] for other in begun if other > number)
            lacking = left_for_it[kind] < wanted
            assert behind == 0 if lacking else wanted == 0 or now[kind] >= wanted


def test_documents_are_kept_until_they_are_closed(pool: PagePool) -> None:
    documents = [read_document(tiny_model(), pool, random_tokens(tiny_model(), 100)) for _ in range(2)]
    one, room = documents[0].page_count, admission(pool)
    for document in documents:
        room.keep(document)
    rest = 100 - 2 * one
    room.check(Needs(rest), [])
    with pytest.raises(OutOfMemoryError) as caught:
        room.check(Needs(rest + 1), [])
    page_bytes = pool.layout.page_bytes
    assert (caught.value.needed_bytes, caught.value.free_bytes) == ((rest + 1) * page_bytes, rest * page_bytes)
    assert caught.value.fits_when_idle
    documents[0].close()
    room.check(Needs(rest + one), [])
    documents[1].close()
    assert room.documents == set()


def test_open_sessions_are_kept(pool: PagePool) -> None:
    """Their pages, and their documents even when these are closed."""
    model, room = tiny_model(), admission(pool)
    document = read_document(model, pool, random_tokens(model, 100))
    room.keep(document)
    with Session(SessionTable(model.config, pool, 1), document) as session:
        session.reserve(20)
        room.open_sessions.add(session)
        document.close()
        assert len(session.pages) > 0
        kept = document.page_count + len(session.pages)
        assert room.free([])[0] == 2
        room.check(Needs(100 - kept), [])
        with pytest.raises(OutOfMemoryError):
            room.check(Needs(100 - kept + 1), [])
    room.open_sessions.discard(session)
    room.check(Needs(100), [])


def test_documents_to_come_are_kept(pool: PagePool) -> None:
    room = admission(pool)
    room.check(Needs(60), [Needs(60), Needs(90)])  # they will be over
    with pytest.raises(OutOfMemoryError):
        room.check(Needs(60), [Needs(41, leaves_document=True)])


@pytest.mark.parametrize("needs", [Needs(101), Needs(1, workspace_bytes=1001)])
def test_what_never_fits(pool: PagePool, needs: Needs) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        admission(pool).check(needs, [])
    assert not caught.value.fits_when_idle
