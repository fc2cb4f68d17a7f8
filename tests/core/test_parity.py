"""Logits against transformers 4.57.1 with the same random weights, and against a naive version where it has none."""

from itertools import product
from typing import Any

import pytest
import torch

from reformer_core.config import ACTIVATIONS
from tests.core.models import clear_tokens, hugging_face_twin, random_model, small_config

LENGTHS = (1, 63, 64, 65, 300, 1000)
KINDS = (("local",), ("lsh",), ("local", "lsh"), ("lsh", "local"), ("lsh", "lsh"), ("local", "local", "lsh"))
CHUNKS = ((128, 256), (64, 64), (16, 8), (24, 16))  # local, LSH
BUCKETS = (8, (4, 8), (2, 4, 6), 64)
POSITIONS: tuple[dict[str, Any], ...] = (
    {"axial_pos_embds": True},
    {"axial_pos_embds": False},
    {"axial_pos_embds": True, "axial_pos_shape": (128, 16), "axial_pos_embds_dim": (20, 12)},
)


def grid() -> list[dict[str, Any]]:
    """Every kind of layers with every number of hash rounds; the rest takes turns, so that all pairs of it occur."""
    return [
        {
            "attn_layers": kinds,
            "num_hashes": rounds,
            "num_buckets": BUCKETS[(index + rounds) % len(BUCKETS)],
            "local_attn_chunk_length": CHUNKS[(index // 4 + rounds) % len(CHUNKS)][0],
            "lsh_attn_chunk_length": CHUNKS[(index // 4 + rounds) % len(CHUNKS)][1],
            "hidden_act": ACTIVATIONS[index % len(ACTIVATIONS)],
            "num_attention_heads": 1 + index % 3,
            **POSITIONS[index % len(POSITIONS)],
        }
        for index, (kinds, rounds) in enumerate(product(KINDS, (1, 2, 3, 4)))
    ]


def worst_difference(lengths: tuple[int, ...], rows: int = 3, **values: Any) -> float:
    model = random_model(small_config(**values))
    twin = hugging_face_twin(model)
    differences = []
    for tokens in lengths:
        token_ids = clear_tokens(model, rows, tokens)
        with torch.no_grad():
            differences.append((model(token_ids) - twin(token_ids, use_cache=False).logits).abs().max())
    return float(torch.stack(differences).max())


@pytest.mark.parametrize(
    "values", grid(), ids=lambda values: f"{'-'.join(values['attn_layers'])}-{values['num_hashes']}"
)
def test_logits_equal_transformers(values: dict[str, Any]) -> None:
    assert worst_difference(LENGTHS, **values) <= 1e-4


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("buckets", BUCKETS)
def test_chunk_lengths_with_bucket_factors(chunks: tuple[int, int], buckets: int | tuple[int, ...]) -> None:
    values = {"local_attn_chunk_length": chunks[0], "lsh_attn_chunk_length": chunks[1], "num_buckets": buckets}
    assert worst_difference((257,), **values) <= 1e-4


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    assert worst_difference((40,), hidden_act=activation) <= 1e-4


@pytest.mark.parametrize(("local", "lsh"), [(0, 1), (1, 0), (2, 1), (1, 2), (3, 3)])
def test_numbers_of_chunks_before(local: int, lsh: int) -> None:
    values = {"local_num_chunks_before": local, "lsh_num_chunks_before": lsh}
    assert worst_difference((15, 100, 203), **values) <= 1e-4


@pytest.mark.parametrize("tokens", [7, 8, 9, 15, 16, 17, 31, 32, 33])
def test_lengths_around_the_chunks(tokens: int) -> None:
    assert worst_difference((tokens,), num_hashes=3) <= 1e-4


def test_published_configuration_in_small() -> None:
    """Layers, buckets and chunks of google/reformer-crime-and-punishment."""
    values = {
        "attn_layers": ("local", "lsh") * 3,
        "num_buckets": (64, 128),
        "num_hashes": 1,
        "local_attn_chunk_length": 64,
        "lsh_attn_chunk_length": 64,
        "vocab_size": 320,
    }
    assert worst_difference((500, 2048), rows=1, **values) <= 1e-4


def test_rows_of_a_batch_are_independent() -> None:
    model = random_model(small_config(num_hashes=3))
    token_ids = torch.randint(50, (3, 133), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = model(token_ids)
        alone = torch.stack([model(row) for row in token_ids])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
