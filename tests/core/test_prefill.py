"""Reading in slices gives what a full pass gives, whatever happens between the slices, and leaves no page behind."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from reformer_core import slicing
from reformer_core.document import Document
from reformer_core.errors import OutOfMemoryError
from reformer_core.model import ReformerModel
from reformer_core.pages import PagePool
from reformer_core.prefill import Prefill
from reformer_core.session import Session
from reformer_core.session_table import SessionTable
from tests.core.tiny import TAIL_TOKENS, decode, random_tokens, read_document, tiny_model, tiny_pool

LENGTHS = (1, 7, 8, 9, 16, 17, 33, 100)


@pytest.fixture
def many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of a few chunks."""
    monkeypatch.setattr(slicing, "CPU_BOUNDS", replace(slicing.CPU_BOUNDS, work=1, least_tokens=24))


def check_against_full_pass(model: ReformerModel, token_ids: torch.Tensor) -> None:
    pool = tiny_pool(model)
    logits = model(token_ids)
    expected = logits[:-1].log_softmax(dim=-1).gather(-1, token_ids[1:, None]).squeeze(-1)
    document = read_document(model, pool, token_ids)
    assert document.scores is not None
    assert document.scores[0].isnan()
    torch.testing.assert_close(document.scores[1:], expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(document.state().next_logits, logits[-1], rtol=0, atol=2e-5)
    assert torch.equal(document.token_ids.long(), token_ids)
    pool.check(document.pages)
    document.close()
    scoring = Prefill(model, pool, token_ids, keep_document=False, keep_scores=True)
    for _ in scoring.slices():
        pass
    assert scoring.scores is not None
    assert torch.equal(scoring.scores[1:], document.scores[1:])  # the same work
    assert scoring.document is None
    pool.check([])


@pytest.mark.parametrize("layers", [("lsh",), ("local",), ("local", "lsh", "local", "lsh"), ("lsh", "lsh")])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("chunks", [(8, 8), (6, 4), (4, 32)])
@pytest.mark.usefixtures("many_slices")
def test_equals_the_full_pass(layers: tuple[str, ...], rounds: int, chunks: tuple[int, int]) -> None:
    model = tiny_model(
        attn_layers=layers, num_hashes=rounds, local_attn_chunk_length=chunks[0], lsh_attn_chunk_length=chunks[1]
    )
    for tokens in LENGTHS:
        check_against_full_pass(model, random_tokens(model, tokens))


@pytest.mark.parametrize("before", [0, 2, 3])
@pytest.mark.usefixtures("many_slices")
def test_other_numbers_of_chunks_before(before: int) -> None:
    model = tiny_model(lsh_num_chunks_before=before, local_num_chunks_before=before)
    for tokens in LENGTHS:
        check_against_full_pass(model, random_tokens(model, tokens))


@pytest.mark.parametrize(
    "config",
    [
        {"num_buckets": (4, 8)},
        {"num_buckets": 2**16},  # more than 16 bits hold
        {"num_attention_heads": 1, "attention_head_size": 12},
        {"num_hashes": 4, "lsh_attn_chunk_length": 64},
        {"vocab_size": 2},
        {"axial_pos_embds": False},
    ],
    ids=str,
)
def test_other_configurations(config: dict[str, Any]) -> None:
    model = tiny_model(**config)
    for tokens in (1, 63, 130):
        check_against_full_pass(model, random_tokens(model, tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    model = tiny_model(dtype)
    token_ids = random_tokens(model, 200)
    scores = read_document(model, tiny_pool(model), token_ids).scores
    exact = read_document(tiny_model(), tiny_pool(tiny_model()), token_ids).scores
    assert scores is not None
    assert exact is not None
    assert scores[1:].isfinite().all()
    assert (scores[1:] - exact[1:]).abs().mean() < 0.15


@pytest.mark.usefixtures("many_slices")
def test_bit_identical_however_it_is_interleaved() -> None:
    """Two documents are read in turns, and another session decodes between their slices."""
    model = tiny_model(attn_layers=("local", "lsh", "lsh"))
    first, second = random_tokens(model, 150, seed=1), random_tokens(model, 90, seed=2)
    alone = [snapshot(model, read_document(model, tiny_pool(model), token_ids)) for token_ids in (first, second)]

    pool = tiny_pool(model)
    document = read_document(model, pool, random_tokens(model, 40, seed=3))
    table = SessionTable(model.config, pool, 1, TAIL_TOKENS)
    with Session(table, document) as session:
        prefills = [read(model, pool, token_ids) for token_ids in (first, second)]
        running = [(prefill, prefill.slices()) for prefill in prefills]
        steps = 0
        while running:
            turn = running.pop(0)
            if next(turn[1], "over") is None:
                running.append(turn)
            if steps < 50:  # merges its tail once
                decode(model, [session], random_tokens(model, 1, seed=steps))
                steps += 1
    documents = [prefill.document for prefill in prefills]
    for found, expected in zip(documents, alone, strict=True):
        assert found is not None
        assert snapshot(model, found) == expected
        found.close()
    document.close()
    pool.check([])


def test_nothing_is_left_in_force_between_slices() -> None:
    """Inference mode would leak into whatever the thread does next."""
    model = tiny_model()
    pool = tiny_pool(model)
    first, second = (read(model, pool, random_tokens(model, 60)).slices() for _ in range(2))
    next(first)
    next(second)
    assert not torch.is_inference_mode_enabled()
    for slices in (first, second):
        for _ in slices:
            assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("many_slices")
def test_closing_it_early_frees_all_pages() -> None:
    model = tiny_model()
    pool, token_ids = tiny_pool(model), random_tokens(model, 50)
    total = sum(1 for _ in read(model, pool, token_ids).slices())
    for done in range(total):
        pool = tiny_pool(model)
        prefill = read(model, pool, token_ids)
        slices = iter_slices(prefill)
        for _ in range(done):
            next(slices)
        slices.close()
        prefill.close()  # a generator that never began runs no `finally`
        pool.check([])
        prefill.close()
        pool.check([])


def test_a_failure_frees_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    pool = tiny_pool(model)
    monkeypatch.setattr(model.reversible_layers[-1].feed_forward, "forward", _fail)
    with pytest.raises(ZeroDivisionError):
        for _ in read(model, pool, random_tokens(model, 50)).slices():
            pass
    pool.check([])


def test_too_few_pages() -> None:
    model = tiny_model()
    needed = Prefill.pages_needed(model, tiny_pool(model), 200, keep_document=True)
    pool = tiny_pool(model, pages=needed)
    with pytest.raises(OutOfMemoryError) as caught:
        read(model, pool, random_tokens(model, 201 + 15))
    assert caught.value.free_bytes == pool.nbytes
    assert not caught.value.fits_when_idle
    pool.check([])
    document = read_document(model, pool, random_tokens(model, 200))
    assert len(document.pages) == needed == pool.used_pages
    document.close()


def test_progress_only_grows() -> None:
    model = tiny_model()
    prefill = read(model, tiny_pool(model), random_tokens(model, 100))
    fractions = [prefill.done_fraction for _ in prefill.slices()]
    assert fractions == sorted(fractions)
    assert prefill.done_fraction == 1.0


def read(model: ReformerModel, pool: PagePool, token_ids: torch.Tensor) -> Prefill:
    return Prefill(model, pool, token_ids, keep_document=True, keep_scores=True)


def iter_slices(prefill: Prefill) -> Any:
    slices: Iterator[None] = prefill.slices()
    return slices


def snapshot(model: ReformerModel, document: Document) -> list[bytes]:
    """All that a document says, bit by bit, but which pages it lies in."""
    pool, tokens = document.pool, document.tokens
    layout = pool.layout
    assert document.scores is not None
    parts = [document.scores, *vars(document.state()).values()]
    lsh_layers, heads, rounds = len(document.token_pages), layout.heads, layout.rounds
    for layer in range(lsh_layers):
        pages, positions = document.token_pages[layer], torch.arange(tokens)
        slots = torch.arange(tokens)
        for head in range(heads):
            rows = layout.key_row(layout.key_bases(pages)[positions >> layout.token_bits], head, positions)
            parts += [pool.rows[rows], pool.rows[rows + layout.value_distance]]
            for round_ in range(rounds):
                bases = layout.order_bases(document.order_pages[layer])[slots >> layout.slot_bits]
                parts.append(pool.entries[layout.order_entry(bases, head * rounds + round_, slots)])
    return [part.contiguous().numpy().tobytes() for part in parts]


def _fail(*_: object) -> torch.Tensor:
    raise ZeroDivisionError
