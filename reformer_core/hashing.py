"""Locality-sensitive hashing: vectors that point the same way get the same bucket.

Paper, section 2, after Andoni et al., arXiv 1509.02897.

Shapes: H heads, D head size, R hash rounds, n tokens.
"""

from collections.abc import Sequence

import torch

from reformer_core.placement import product_dtype

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


def draw_rotations(seed: int, heads: int, head_size: int, rounds: int, factors: Sequence[int]) -> torch.Tensor:
    """Random rotations, and their opposites, float32 [H, D, R, sum(factors)], consecutive columns for each factor.

    They are drawn from a private generator, not the global one.
    """
    generator = torch.Generator("cpu").manual_seed(seed)  # the same numbers on every device
    drawn = torch.randn(heads, head_size, rounds, sum(factors) // 2, generator=generator, device="cpu")
    halves = drawn.split([factor // 2 for factor in factors], dim=-1)
    return torch.cat([half for rotations in halves for half in (rotations, -rotations)], dim=-1)


def hash_buckets(query_key: torch.Tensor, rotations: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Bucket of each vector in each round: argmax of [xR, -xR], for each factor of the number of buckets.

    The unnormalised vectors are hashed; argmax doesn't mind their length.

    Args:
        query_key: [..., H, n, D].
        rotations: [H, D, R, sum(factors)], of `draw_rotations`.
        factors: factors of the number of buckets, least significant first.

    Returns:
        int64 [..., H, R, n], from 0 to prod(factors) - 1.
    """
    dtype = product_dtype(query_key.dtype, query_key.device)
    rotated = query_key.to(dtype) @ rotations.to(dtype).flatten(-2)
    rotated = rotated.unflatten(-1, rotations.shape[-2:])  # [..., H, n, R, sum(factors)]
    digits = [_bits(part).argmax(dim=-1) for part in rotated.split(list(factors), dim=-1)]
    buckets, weight = digits[0], 1
    for factor, digit in zip(factors, digits[1:], strict=False):  # the factor before each digit
        weight *= factor
        buckets = buckets.add(digit, alpha=weight)
    return buckets.transpose(-1, -2)


def _bits(x: torch.Tensor) -> torch.Tensor:
    """Floating-point numbers as the integers that their bits are; of these, CPUs find the largest several times faster.

    It is the same one, the first of equals included, if it is greater than zero. Below, the order is reversed.
    """
    return x.view(_INTEGERS[x.dtype.itemsize])
