"""Hashing: equal to transformers and to a naive loop; repeatable; leaves the global random state alone."""

import math
from itertools import pairwise

import pytest
import torch
import transformers

from reformer_core.hashing import draw_rotations, hash_buckets
from reformer_core.lsh_attention import sorted_order
from tests.core.models import random_model, small_config

FACTORS = [(2,), (8,), (4, 8), (2, 4, 6)]


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def naive_bucket(vector: torch.Tensor, rotations: torch.Tensor, factors: tuple[int, ...]) -> int:
    """vector [D], rotations [D, columns]."""
    rotated = (vector @ rotations).tolist()
    bucket, column, weight = 0, 0, 1
    for factor in factors:
        part = rotated[column : column + factor // 2]
        candidates = part + [-x for x in part]
        bucket += weight * candidates.index(max(candidates))
        column += factor  # beginning with those that weren't negated
        weight *= factor
    return bucket


@pytest.mark.parametrize("factors", FACTORS)
def test_equals_a_naive_loop(factors: tuple[int, ...]) -> None:
    query_key, rotations = vectors(2, 3, 17, 8), draw_rotations(5, 3, 8, 2, factors)
    buckets = hash_buckets(query_key, rotations, factors)
    assert buckets.shape == (2, 3, 2, 17)
    for b, h, r, n in torch.cartesian_prod(*(torch.arange(size) for size in buckets.shape)).tolist():
        assert buckets[b, h, r, n] == naive_bucket(query_key[b, h, n], rotations[h, :, r], factors)


@pytest.mark.parametrize("factors", FACTORS)
def test_equals_transformers(factors: tuple[int, ...]) -> None:
    config = small_config(num_buckets=factors, num_hashes=3, hash_seed=11)
    theirs = transformers.models.reformer.modeling_reformer.LSHSelfAttention(
        transformers.ReformerConfig(**config.to_dict())
    )
    query_key = vectors(2, 2, 40, 16)
    with torch.random.fork_rng():  # it seeds the global state
        expected = theirs._hash_vectors(query_key, num_hashes=3, attention_mask=None)  # [B, H, R n], rounds offset
    rounds = torch.arange(3).view(1, 1, 3, 1) * math.prod(factors)
    ours = hash_buckets(query_key, draw_rotations(11, 2, 16, 3, factors), factors)
    assert torch.equal((ours + rounds).flatten(-2), expected)


def test_length_does_not_matter_and_opposites_are_half_the_buckets_away() -> None:
    query_key, rotations = vectors(2, 50, 16), draw_rotations(0, 2, 16, 4, (8,))
    buckets = hash_buckets(query_key, rotations, (8,))
    assert torch.equal(hash_buckets(query_key * 7, rotations, (8,)), buckets)
    assert torch.equal(hash_buckets(-query_key, rotations, (8,)), (buckets + 4) % 8)


def test_near_vectors_meet_more_often_than_far_ones() -> None:
    query_key, rotations = vectors(1, 400, 16), draw_rotations(0, 1, 16, 8, (16,))
    buckets = hash_buckets(query_key, rotations, (16,))

    def share(noise: float) -> float:
        moved = query_key + noise * torch.randn(query_key.shape, generator=torch.Generator().manual_seed(2))
        return float((hash_buckets(moved, rotations, (16,)) == buckets).float().mean())

    shares = [share(noise) for noise in (0.0, 0.1, 0.5, 2.0, 100.0)]
    assert shares[0] == 1
    assert all(nearer > farther for nearer, farther in pairwise(shares))
    assert shares[-1] == pytest.approx(1 / 16, abs=0.03)


def test_same_seed_same_rotations_and_the_global_state_is_untouched() -> None:
    state = torch.get_rng_state()
    first, again = (draw_rotations(7, 2, 16, 2, (8,)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw_rotations(8, 2, 16, 2, (8,)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_forward_pass_repeats_itself_and_leaves_the_global_state_alone() -> None:
    model = random_model(small_config(hash_seed=None))
    token_ids = torch.arange(40) % 50
    state = torch.get_rng_state()
    with torch.no_grad():
        first, again = model(token_ids), model(token_ids)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_sorted_order_is_one_stable_sort_with_the_padding_last() -> None:
    buckets = torch.tensor([[2, 0, 2, 1, 0], [1, 1, 1, 1, 1]])
    assert sorted_order(buckets, 8).tolist() == [[1, 4, 3, 0, 2, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
