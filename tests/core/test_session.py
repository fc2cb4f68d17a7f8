"""Sessions: forks, rewinds, merges and failures, against the order of one stable sort and a full pass."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_core.bucket_index import merged_positions
from reformer_core.errors import OutOfMemoryError, TooManyTokensError
from reformer_core.lsh_attention import LSHAttention
from reformer_core.model import ReformerModel
from reformer_core.session import Session, tail_pages_needed
from reformer_core.session_table import SessionRows, SessionTable
from tests.core.tiny import (
    TAIL_TOKENS,
    append,
    decode,
    last_rows,
    open_session,
    random_tokens,
    read_document,
    tiny_model,
    tiny_pool,
)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["decode", "extend"]), st.integers(1, 20)),
        st.tuples(st.sampled_from(["merge", "fork", "rewind", "close"]), st.just(0)),
    ),
    max_size=10,
)


@given(st.integers(1, 60), STEPS, st.integers(0, 1000))
@settings(max_examples=40)
def test_any_interleaving_gives_the_order_of_one_stable_sort(
    tokens: int, steps: list[tuple[str, int]], seed: int
) -> None:
    model = tiny_model(attn_layers=("lsh",), num_hashes=2, num_buckets=6)
    token_ids = random_tokens(model, tokens, seed)
    first = open_session(model, token_ids, sessions=8)
    document, table = first.document, first.table
    open_sessions, texts = [first], {first: token_ids}
    for number, (step, count) in enumerate(steps):
        session = open_sessions[(seed + number) % len(open_sessions)]
        if step in ("decode", "extend"):
            more = random_tokens(model, count, seed + number)
            append(model, session, more, 1 if step == "decode" else 7)
            texts[session] = torch.cat([texts[session], more])
        elif step == "merge":
            session.merge_tail()
        elif step == "rewind":
            session.rewind()
            texts[session] = token_ids
        elif step == "fork" and table.free_rows:
            open_sessions.append(session.fork())
            texts[open_sessions[-1]] = texts[session]
        elif step == "close" and len(open_sessions) > 1:
            open_sessions.remove(session)
            session.close()
        for session in open_sessions:
            assert session.length == len(texts[session])
            check_order(model, session, texts[session])
        table.pool.check([*document.pages, *(page for session in open_sessions for page in session.pages)])
    for session in open_sessions:
        session.close()
    assert table.free_rows == table.sessions
    table.pool.check([])


def check_order(model: ReformerModel, session: Session, token_ids: torch.Tensor) -> None:
    """The merged order of a model of one LSH layer is that of one stable sort over all buckets."""
    attention = model.reversible_layers[0].attention
    assert isinstance(attention, LSHAttention)
    query_key, _ = attention.project(model.embed(token_ids, torch.arange(len(token_ids)))[None])
    buckets = attention.hash(query_key)  # [1, H, R, n]
    table, row = session.table, session.row
    base, tail = SessionRows(table, torch.tensor([row])).base(0), table.tail(0, slice(row, row + 1))
    lanes = torch.arange(buckets.shape[1] * buckets.shape[2]).unsqueeze(0)
    merged = merged_positions(table.pool, base, tail, lanes, torch.zeros_like(lanes), len(token_ids))
    assert torch.equal(merged.view_as(buckets), torch.sort(buckets, dim=-1, stable=True).indices)


@pytest.mark.parametrize("appended", [0, 5, TAIL_TOKENS, TAIL_TOKENS + 3])
@pytest.mark.parametrize("layers", [("lsh",), ("local",)])
def test_forks_go_separate_ways(appended: int, layers: tuple[str, ...]) -> None:
    """Forked before a token, in the middle of the tail, with a full tail, after a merge."""
    model = tiny_model(attn_layers=layers)
    prompt, one, other = (random_tokens(model, count, seed=count) for count in (20 + appended, 45, 50))
    with open_session(model, prompt[:20]) as session:
        if appended:
            append(model, session, prompt[20:])
        fork = session.fork()
        assert torch.equal(session.table.next_logits[fork.row], session.table.next_logits[session.row])
        # Both in turns, so that one would see what the other writes.
        rows = [
            (append(model, session, one[i : i + 1]), append(model, fork, other[i : i + 1])) for i in range(len(one))
        ]
        session.table.pool.check([*session.document.pages, *session.pages, *fork.pages])
        fork.close()
    for text, found in zip((one, other), zip(*rows, strict=True), strict=True):
        expected = last_rows(model, torch.cat([prompt, text[: len(one)]]), len(prompt))
        torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-5)


def test_a_fork_outlives_its_origin() -> None:
    model = tiny_model(attn_layers=("lsh",))
    token_ids = random_tokens(model, 90)
    session = open_session(model, token_ids[:30])
    append(model, session, token_ids[30:70], 40)
    pool, fork = session.table.pool, session.fork()
    session.close()
    with Session(fork.table, fork.document) as reuser:  # takes the row and the pages that were freed
        append(model, reuser, random_tokens(model, 60, seed=5), 20)
    found = append(model, fork, token_ids[70:])
    torch.testing.assert_close(found, last_rows(model, token_ids, 70), rtol=0, atol=1e-5)
    fork.close()
    pool.check([])


def test_rewound_sessions_are_as_new() -> None:
    model = tiny_model()
    token_ids = random_tokens(model, 100)
    with open_session(model, token_ids[:30]) as session:
        first = append(model, session, token_ids[30:])
        held = len(session.pages)
        session.rewind()
        assert torch.equal(session.table.next_logits[session.row], session.document.state().next_logits)
        assert torch.equal(append(model, session, token_ids[30:]), first)
        assert len(session.pages) == held


def test_merging_takes_turns_with_other_sessions() -> None:
    model = tiny_model(attn_layers=("lsh",), num_hashes=1)
    token_ids = random_tokens(model, 200)
    with open_session(model, token_ids[:60], page_tokens=2) as session:
        append(model, session, token_ids[60 : 60 + TAIL_TOKENS])
        fork = session.fork()
        slices = 0
        for _ in session.merge_slices():  # the fork goes on meanwhile, and merges its own
            append(model, fork, token_ids[92 + slices : 93 + slices])
            slices += 1
        assert slices == session.table.pool.layout.order_pages(92) > 1
        found = append(model, session, token_ids[92:130])
        of_fork = append(model, fork, token_ids[92 + slices : 130])
        fork.close()
    expected = last_rows(model, token_ids[:130], 92)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(of_fork, expected[slices:], rtol=0, atol=1e-5)


def test_closing_in_the_middle_of_a_merge() -> None:
    model = tiny_model()
    session = open_session(model, random_tokens(model, 60), page_tokens=2)
    append(model, session, random_tokens(model, 20))
    merge: Iterator[None] = session.merge_slices()
    next(merge)
    session.close()
    session.table.pool.check([])


@pytest.mark.parametrize("tokens", [1, 16, 33])
def test_the_pages_said_to_be_needed_are_enough(tokens: int) -> None:
    model = tiny_model(num_hashes=4)
    for appended in (1, 17, TAIL_TOKENS, 4 * TAIL_TOKENS):
        pool = tiny_pool(model)
        document = read_document(model, pool, random_tokens(model, tokens))
        table = SessionTable(model.config, pool, 1, TAIL_TOKENS)
        held = pool.allocate(tail_pages_needed(table, tokens, appended))
        pool.allocate(pool.free_pages)  # nothing else is free
        with Session(table, document, held) as session:
            append(model, session, random_tokens(model, appended))
            assert sorted(session.pages) == sorted(held)


def test_a_table_has_only_so_many_rows() -> None:
    model = tiny_model()
    session = open_session(model, random_tokens(model, 20), sessions=2)
    append(model, session, random_tokens(model, 5))
    table, document = session.table, session.document
    second = session.fork()
    with pytest.raises(OutOfMemoryError):
        Session(table, document)
    with pytest.raises(OutOfMemoryError):
        session.fork()
    table.pool.check([*document.pages, *session.pages, *second.pages])
    session.close()
    second.close()
    assert document.freed
    assert table.free_rows == 2


def test_no_pages_left() -> None:
    """Reserving, merging and forking fail, nothing has changed, and all goes on when there are pages again."""
    model = tiny_model(attn_layers=("lsh",))
    token_ids = random_tokens(model, 120)
    session = open_session(model, token_ids[:30], pages=60)
    pool = session.table.pool
    session.reserve(TAIL_TOKENS)
    append(model, session, token_ids[30 : 30 + TAIL_TOKENS])
    taken, pages = pool.allocate(pool.free_pages), session.pages
    for fails in (lambda: session.reserve(30), session.merge_tail, session.fork):
        with pytest.raises(OutOfMemoryError):
            fails()
        assert session.pages == pages
    pool.check([*taken, *session.document.pages, *pages])
    pool.release(taken)
    found = append(model, session, token_ids[30 + TAIL_TOKENS :])
    torch.testing.assert_close(found, last_rows(model, token_ids, 30 + TAIL_TOKENS), rtol=0, atol=1e-5)
    session.close()
    pool.check([])


def test_no_session_outgrows_the_positions() -> None:
    model = tiny_model(axial_pos_shape=(8, 8))
    with open_session(model, random_tokens(model, 60)) as session:
        with pytest.raises(TooManyTokensError, match="65 tokens, but the model has positions for 64"):
            session.reserve(5)
        with pytest.raises(TooManyTokensError):
            append(model, session, random_tokens(model, 5), 5)
        append(model, session, random_tokens(model, 4), 4)
        with pytest.raises(TooManyTokensError):
            decode(model, [session], random_tokens(model, 1))
        assert session.length == 64
        assert session.fork().length == 64


def test_a_full_tail_is_decoded_with_its_full_capacity() -> None:
    model = tiny_model(attn_layers=("lsh",))
    token_ids = random_tokens(model, 20 + 2 * TAIL_TOKENS + 1)
    with open_session(model, token_ids[:20]) as session:
        found = append(model, session, token_ids[20:])
        assert session.tail_tokens == 1
        assert session.base_tokens == 20 + 2 * TAIL_TOKENS
    torch.testing.assert_close(found, last_rows(model, token_ids, 20), rtol=0, atol=1e-5)


def test_the_sessions_of_a_step_move_to_the_first_rows() -> None:
    """Whatever lies there changes places with them, and nobody notices."""
    model = tiny_model()
    pool = tiny_pool(model)
    document = read_document(model, pool, random_tokens(model, 30))
    table = SessionTable(model.config, pool, 5, TAIL_TOKENS)
    sessions = [Session(table, document) for _ in range(5)]
    texts = [random_tokens(model, 20, seed) for seed in range(5)]
    for session, text in zip(sessions, texts, strict=True):
        append(model, session, text[:10], 10)
    sessions[0].close()  # a row to be moved into
    for pair in ((4, 2), (1, 3), (2, 1, 3), (4, 1), (3,)):
        step = [sessions[number] for number in pair]
        at = [session.length - 30 for session in step]
        decode(model, step, torch.stack([texts[number][place] for number, place in zip(pair, at, strict=True)]))
        assert {session.row for session in step} == set(range(len(step)))
        assert len({session.row for session in sessions[1:]}) == 4
    for number in range(1, 5):
        session = sessions[number]
        with Session(table, document) as alone:
            expected = append(model, alone, texts[number][: session.length - 30], 1)[-1]
            torch.testing.assert_close(table.next_logits[session.row], expected, rtol=0, atol=1e-5)
        session.close()
    assert table.free_rows == 5
    document.close()
    pool.check([])
