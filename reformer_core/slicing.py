"""How long work is cut: slices of bounded work, so that others get their turns in between."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from reformer_core.config import ReformerConfig
from reformer_core.placement import multiplies_bfloat16

WINDOW_ENTRIES = 2**25  # of the windows that a slice of appended tokens gathers: 64 MiB of keys in float16


@dataclass(frozen=True)
class SliceBounds:
    """How much a slice may be: long enough for the device to be busy with it, and over within some 10 ms."""

    work: int
    """Multiply-adds a slice, without attention's: a few decode steps."""
    least_tokens: int
    most_tokens: int
    least_extend_tokens: int
    most_extend_tokens: int
    """Tokens that are appended, each with windows of its own: more are hardly faster."""


CPU_BOUNDS = SliceBounds(2**28, 256, 4096, 16, 32)  # of two cores, in float32
GPU_BOUNDS = SliceBounds(2**38, 4096, 32768, 64, 256)  # there, short slices would be all launching of kernels

BFLOAT16_SPEED = 4  # times float32's, on CPUs that multiply it


def slice_bounds(device: torch.device) -> SliceBounds:
    """The device's; what is no GPU counts as a CPU."""
    return GPU_BOUNDS if device.type == "cuda" else CPU_BOUNDS


def slice_tokens(config: ReformerConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens a slice of one layer, in a model stored as `dtype`: a multiple of the chunk lengths, of bounded work."""
    bounds = slice_bounds(device)
    speed = BFLOAT16_SPEED if multiplies_bfloat16(dtype, device) else 1
    inner = config.num_attention_heads * config.attention_head_size
    work = config.hidden_size * (2 * config.feed_forward_size + 4 * inner)
    wanted = min(max(speed * bounds.work // work, bounds.least_tokens), bounds.most_tokens)
    return max(wanted // config.chunk_multiple, 1) * config.chunk_multiple


def extend_tokens(config: ReformerConfig, device: torch.device) -> int:
    """Tokens a slice that is appended to a session, each with windows of its own."""
    bounds = slice_bounds(device)
    row = config.num_attention_heads * config.num_hashes * config.lsh_window * config.attention_head_size
    return min(max(WINDOW_ENTRIES // row, bounds.least_extend_tokens), bounds.most_extend_tokens)


def parts(length: int, step: int) -> Iterator[slice]:
    """0 to length in slices of `step`, the last one shorter."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
