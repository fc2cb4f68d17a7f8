"""Locality-sensitive hashing: vectors that point the same way get the same bucket.

Paper, section 2, after Andoni et al., arXiv 1509.02897.

Shapes: H heads, D head size, R hash rounds, n tokens.
"""

from collections.abc import Sequence

import torch

from reformer_core.placement import product_dtype


def draw_rotations(seed: int, heads: int, head_size: int, rounds: int, factors: Sequence[int]) -> torch.Tensor:
    """Random rotations, float32 [H, D, R, sum(factors) / 2], from a private generator, not the global one."""
    generator = torch.Generator("cpu").manual_seed(seed)  # the same numbers on every device
    return torch.randn(heads, head_size, rounds, sum(factors) // 2, generator=generator, device="cpu")


def hash_buckets(query_key: torch.Tensor, rotations: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Bucket of each vector in each round: argmax of [xR, -xR], for each factor of the number of buckets.

    The unnormalised vectors are hashed; argmax doesn't mind their length.

    Args:
        query_key: [..., H, n, D].
        rotations: [H, D, R, sum(factors) / 2], consecutive columns for consecutive factors.
        factors: factors of the number of buckets, least significant first.

    Returns:
        int64 [..., H, R, n], from 0 to prod(factors) - 1.
    """
    heads, head_size, rounds, columns = rotations.shape
    dtype = product_dtype(query_key.dtype, query_key.device)
    rotated = query_key.to(dtype) @ rotations.view(heads, head_size, rounds * columns).to(dtype)
    rotated = rotated.unflatten(-1, (rounds, columns))  # [..., H, n, R, columns]
    parts = rotated.split([factor // 2 for factor in factors], dim=-1)
    digits = [torch.cat([part, -part], dim=-1).argmax(dim=-1) for part in parts]
    buckets, weight = digits[0], 1
    for factor, digit in zip(factors, digits[1:], strict=False):  # the factor before each digit
        weight *= factor
        buckets = buckets.add(digit, alpha=weight)
    return buckets.transpose(-1, -2)
