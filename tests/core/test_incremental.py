"""Appended tokens get what a full pass over everything gives them, decoded one at a time or read in slices."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reformer_core.document import Document, document_pages
from reformer_core.extend import extend
from reformer_core.incremental import decode_step, extend_slice
from reformer_core.model import ReformerModel
from reformer_core.session import Session
from reformer_core.session_table import SessionTable
from tests.core.naive_session import NaiveSession
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

L = 8  # chunk length of the LSH layers here, if nothing else is said


def worst_difference(model: ReformerModel, tokens: int, appended: int, together: tuple[int, ...]) -> float:
    """Of the logits after each of so many appended tokens from the last row of a full pass over that prefix."""
    token_ids = random_tokens(model, tokens + appended)
    expected = last_rows(model, token_ids, tokens)
    found = []
    for size in together:
        with open_session(model, token_ids[:tokens]) as session:
            found.append(append(model, session, token_ids[tokens:], size))
    return float((torch.stack(found) - expected).abs().max())


@pytest.mark.parametrize(
    "config",
    [
        {"num_hashes": 1, "num_buckets": 8},
        {"num_hashes": 4, "num_buckets": (4, 8)},
        {"attn_layers": ("local",), "local_attn_chunk_length": 16},
    ],
    ids=["1 round", "4 rounds, factored buckets", "local"],
)
def test_three_hundred_tokens(config: dict[str, Any]) -> None:
    model = tiny_model(**{"attn_layers": ("lsh",), **config})
    assert worst_difference(model, 100, 300, (1, 17, 300)) <= 1e-5


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
@pytest.mark.parametrize("buckets", [8, (2, 4, 2)])
@pytest.mark.parametrize("tokens", [1, L - 1, L, L + 1, 2 * L - 1, 2 * L, 2 * L + 1, 3 * L, 5 * L + 1])
def test_documents_around_the_chunks(rounds: int, buckets: int | tuple[int, ...], tokens: int) -> None:
    model = tiny_model(attn_layers=("lsh",), num_hashes=rounds, num_buckets=buckets)
    assert worst_difference(model, tokens, 2 * L + 3, (1, 7)) <= 1e-5


@pytest.mark.parametrize("before", [0, 2, 3])
@pytest.mark.parametrize("layer", ["lsh", "local"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_chunks_before(before: int, layer: str, rounds: int) -> None:
    model = tiny_model(
        attn_layers=(layer,),
        num_hashes=rounds,
        lsh_num_chunks_before=before,
        local_num_chunks_before=before,
        local_attn_chunk_length=L,
    )
    # Without a chunk before, a token may see only itself; with several rounds a full pass is then as coarse as 1/256.
    tolerance = 1e-5 if before > 0 or rounds == 1 or layer == "local" else 1e-2
    for tokens in (1, 2 * L, 2 * L + 1):
        assert worst_difference(model, tokens, 4 * L, (1, 5)) <= tolerance


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": 1, "attention_head_size": 12},
        {"num_attention_heads": 3, "attention_head_size": 5},
        {"lsh_attn_chunk_length": 5},
        {"lsh_attn_chunk_length": 1},
        {"num_buckets": 2, "num_hashes": 3},
        {"num_buckets": 2048},
        {"vocab_size": 2},
        {"axial_pos_embds": False, "max_position_embeddings": 64},
        {"axial_pos_shape": (4, 4, 4), "axial_pos_embds_dim": (8, 8, 16)},
    ],
    ids=str,
)
def test_odd_configurations(config: dict[str, Any]) -> None:
    model = tiny_model(**{"attn_layers": ("lsh",), **config})
    assert worst_difference(model, 19, 45, (1, 9)) <= 1e-5  # up to the last position of some


def test_all_tokens_in_one_bucket() -> None:
    model = tiny_model(attn_layers=("lsh",))
    attention = model.reversible_layers[0].attention
    attention.query_key.weight.zero_()  # all rotated vectors are 0, so that the first bucket always wins
    assert worst_difference(model, 30, 40, (1, 40)) <= 1e-5


def test_many_local_layers_are_exact_too() -> None:
    model = tiny_model(attn_layers=("local",) * 4, local_attn_chunk_length=4)
    assert worst_difference(model, 21, 30, (1, 8, 30)) <= 1e-5


@pytest.mark.parametrize(
    ("layers", "local_length", "lsh_length"),
    [
        (("local", "lsh"), 16, 8),
        (("local", "lsh", "local", "lsh"), 4, 8),
        (("lsh", "local", "lsh"), 6, 4),
        (("lsh", "lsh"), 8, 8),
        (("lsh", "local"), 4, 32),
    ],
)
@pytest.mark.parametrize("tokens", [1, 3, 8, 12, 31, 33])
def test_several_layers_against_sorting_everything(
    layers: tuple[str, ...], local_length: int, lsh_length: int, tokens: int
) -> None:
    """With several layers a full pass would change earlier tokens; the definition of a cached pass is naive."""
    model = tiny_model(
        attn_layers=layers, local_attn_chunk_length=local_length, lsh_attn_chunk_length=lsh_length, num_hashes=3
    )
    token_ids = random_tokens(model, tokens + 45)
    naive = NaiveSession(model, token_ids[:tokens])
    expected = torch.stack([naive.append(token_id) for token_id in token_ids[tokens:].split(1)])
    for together in (1, 11):
        with open_session(model, token_ids[:tokens]) as session:
            found = append(model, session, token_ids[tokens:], together)
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


def test_the_naive_session_is_right() -> None:
    model = tiny_model(attn_layers=("lsh",), num_hashes=2)
    token_ids = random_tokens(model, 60)
    naive = NaiveSession(model, token_ids[:13])
    found = torch.stack([naive.append(token_id) for token_id in token_ids[13:].split(1)])
    torch.testing.assert_close(found, last_rows(model, token_ids, 13), rtol=0, atol=1e-5)


def test_decoding_and_reading_take_turns() -> None:
    model = tiny_model(attn_layers=("lsh",), num_hashes=2)
    token_ids = random_tokens(model, 150)
    expected, done, found = last_rows(model, token_ids, 20), 20, []
    with open_session(model, token_ids[:20]) as session:
        for count, together in ((3, 1), (31, 31), (1, 1), (60, 9), (20, 1), (15, 15)):
            found.append(append(model, session, token_ids[done : done + count], together))
            done += count
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-5)


def test_up_to_the_last_position() -> None:
    model = tiny_model(axial_pos_shape=(8, 8), num_hashes=3)
    token_ids = random_tokens(model, 64)
    naive = NaiveSession(model, token_ids[:50])
    expected = torch.stack([naive.append(token_id) for token_id in token_ids[50:].split(1)])
    for together in (1, 14):
        with open_session(model, token_ids[:50], page_tokens=8) as session:
            found = append(model, session, token_ids[50:], together)
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [("local", "lsh"), ("local",) * 2])
def test_half_precision_is_near(dtype: torch.dtype, layers: tuple[str, ...]) -> None:
    exact, rounded = tiny_model(attn_layers=layers), tiny_model(dtype, attn_layers=layers)
    token_ids = random_tokens(exact, 70)
    rows = []
    for model, together in ((exact, 1), (rounded, 1), (rounded, 8)):
        with open_session(model, token_ids[:30]) as session:
            rows.append(append(model, session, token_ids[30:], together).log_softmax(dim=-1))
    for row in rows[1:]:
        assert row.isfinite().all()
        assert (row - rows[0]).abs().mean() < 0.15  # a rounded hash changes what a token sees, so the mean


def test_sessions_together_say_what_they_say_alone() -> None:
    """8 sessions on 3 documents, of different lengths, greedy: the same tokens."""
    model = tiny_model(attn_layers=("local", "lsh", "local", "lsh"))
    pool = tiny_pool(model)
    documents = [read_document(model, pool, random_tokens(model, count, seed=count)) for count in (5, 64, 131)]
    table = SessionTable(model.config, pool, 8, TAIL_TOKENS)
    prompts = [random_tokens(model, 1 + 3 * number, seed=number) for number in range(8)]

    def start(number: int) -> Session:
        session = Session(table, documents[number % 3])
        for _ in extend(model, session, prompts[number]):
            pass
        return session

    def generate(sessions: list[Session], steps: int) -> torch.Tensor:
        """Greedy tokens, int64 [B, steps]."""
        ids = []
        for _ in range(steps):
            ids.append(table.next_logits[[session.row for session in sessions]].argmax(dim=-1))
            decode(model, sessions, ids[-1])
        return torch.stack(ids, dim=1)

    alone = []
    for number in range(8):
        with start(number) as session:
            alone.append(generate([session], 40))
    sessions = [start(number) for number in range(8)]
    assert torch.equal(generate(sessions, 40), torch.cat(alone))
    assert len({tuple(row.tolist()) for row in torch.cat(alone)}) > 4  # they do say different things
    for holder in (*sessions, *documents):
        holder.close()
    pool.check([])


def test_sessions_join_and_leave_between_steps() -> None:
    model = tiny_model(attn_layers=("lsh",))
    pool = tiny_pool(model)
    token_ids = random_tokens(model, 60)
    expected = last_rows(model, token_ids, 20)
    document = read_document(model, pool, token_ids[:20])
    table = SessionTable(model.config, pool, 3, TAIL_TOKENS)
    sessions: list[Session] = []
    for step in range(60):
        if step % 7 == 0 and len(sessions) < 3:
            sessions.append(Session(table, document))
        if step % 16 == 15:
            sessions.pop(step % len(sessions)).close()
        active = [session for session in sessions if session.length < 60]
        if active:
            logits = decode(model, active, token_ids[[session.length for session in active]])
            at = [session.length - 21 for session in active]
            torch.testing.assert_close(logits, expected[at], rtol=0, atol=1e-5)


# -- fixed shapes


def meta_session(sessions: int = 1) -> tuple[ReformerModel, list[Session]]:
    """A model, a pool, a table and sessions on the meta device: nothing there has a value."""
    with torch.device("meta"):
        model = tiny_model().to("meta")
    config = model.config
    pool = tiny_pool(model)
    lsh, layout, tokens = config.attn_layers.count("lsh"), pool.layout, 100
    token_pages, order_pages, state_pages = (
        torch.tensor(pool.allocate(count)) for count in document_pages(layout, tokens)
    )
    document = Document(
        pool=pool,
        token_ids=torch.zeros(tokens, dtype=torch.int32),
        token_pages=token_pages.view(lsh, -1),
        order_pages=order_pages.view(lsh, -1),
        state_pages=state_pages,
    )
    table = SessionTable(config, pool, sessions, TAIL_TOKENS)
    return model, [Session(table, document) for _ in range(sessions)]


def test_decoding_looks_at_no_value() -> None:
    """On the meta device `.item()`, boolean indexing and a tensor left on the CPU all raise."""
    model, sessions = meta_session(3)
    for session in sessions:
        session.reserve(1)
    decode_step(model, sessions[0].table, torch.zeros(3, dtype=torch.long, device="meta"), TAIL_TOKENS)
    assert sessions[0].table.next_logits.is_meta


def test_extending_looks_at_no_value() -> None:
    model, (session,) = meta_session()
    session.reserve(20)
    logits = extend_slice(model, session, torch.zeros(20, dtype=torch.long, device="meta"))
    assert logits.shape == (20, model.config.vocab_size)


class CountWork(TorchDispatchMode):
    """Counts operations, and the bytes of what they give that isn't a view."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(out, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
            self.nbytes += out.nbytes
        return out


def work_of_a_step(model: ReformerModel, tokens: int, sessions: int = 1) -> tuple[int, int]:
    """Operations and bytes of one decode step of so many sessions on a document of so many tokens."""
    pool = tiny_pool(model)
    document = read_document(model, pool, random_tokens(model, tokens))
    table = SessionTable(model.config, pool, sessions, TAIL_TOKENS)
    opened = [Session(table, document) for _ in range(sessions)]
    decode(model, opened, random_tokens(model, sessions))
    with CountWork() as work:
        decode(model, opened, random_tokens(model, sessions))
    return work.operations, work.nbytes


def test_a_step_costs_the_same_after_any_document() -> None:
    model = tiny_model()
    assert work_of_a_step(model, 40) == work_of_a_step(model, 900)


def test_a_step_costs_the_same_whatever_the_positions() -> None:
    """It reads single entries of the page tables and bucket offsets, and never copies them."""
    few, many = (tiny_model(axial_pos_shape=(rows, 64), num_buckets=8) for rows in (4, 4096))
    assert work_of_a_step(few, 40) == work_of_a_step(many, 40)


def test_a_step_costs_the_same_whatever_the_buckets() -> None:
    (operations, nbytes), (more_operations, more_nbytes) = (
        work_of_a_step(tiny_model(attn_layers=("lsh",), num_buckets=buckets, num_hashes=1), 40) for buckets in (2, 512)
    )
    assert operations == more_operations
    assert more_nbytes - nbytes < 2 * 512 * 4 * 8  # the rotated vectors of two heads, and little more


def test_sessions_take_no_operations_of_their_own() -> None:
    model = tiny_model()
    (two, of_two), (sixteen, of_sixteen) = (work_of_a_step(model, 40, sessions) for sessions in (2, 16))
    assert two == sixteen
    assert of_sixteen <= 8 * of_two
