"""What the model's stages have to compute and to read at the least, and what the machine can do of each."""

import statistics
from time import perf_counter

import torch

from reformer_core import ReformerConfig

MATRIX_SIZE = 2048
COPIED_BYTES = 512 << 20
REPEATS = 7

Work = dict[str, float]
"""By stage."""


def multiplications(config: ReformerConfig) -> Work:
    """Floating-point operations a token takes in matrix products, when a document is read with its scores.

    A chunk is multiplied with the whole window that it sees, as the algorithm has it, though half of that is masked.
    """
    c = config
    lsh, local = c.attn_layers.count("lsh"), c.attn_layers.count("local")
    inner = c.num_attention_heads * c.attention_head_size
    return {
        "project": 2 * c.hidden_size * inner * (2 * lsh + 3 * local),
        "hash": 2 * inner * c.num_hashes * (sum(c.bucket_factors) // 2) * lsh,
        "attend, LSH": 4 * inner * c.num_hashes * c.lsh_window * lsh,
        "attend, local": 4 * inner * c.local_window * local,
        "output": 2 * inner * c.hidden_size * (lsh + local),
        "feed-forward": 4 * c.hidden_size * c.feed_forward_size * (lsh + local),
        "head": 4 * c.hidden_size * c.vocab_size,
    }


def decode_reads(config: ReformerConfig, item_bytes: int) -> Work:
    """Bytes that a decode step of one stream has to read: weights, and the keys and values of its windows."""
    c = config
    lsh, local = c.attn_layers.count("lsh"), c.attn_layers.count("local")
    inner = c.num_attention_heads * c.attention_head_size
    entries = {
        "project": c.hidden_size * inner * (2 * lsh + 3 * local),
        "hash": inner * c.num_hashes * (sum(c.bucket_factors) // 2) * lsh,
        "attend": 2 * inner * (c.num_hashes * c.lsh_window * lsh + c.local_window * local),
        "output": inner * c.hidden_size * (lsh + local),
        "feed-forward": 2 * c.hidden_size * c.feed_forward_size * (lsh + local),
        "head": 2 * c.hidden_size * c.vocab_size,
    }
    return {stage: float(item_bytes * count) for stage, count in entries.items()}


def multiplication_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second in the product of large square matrices."""
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = []
    for _ in range(1 + REPEATS):
        began = perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(perf_counter() - began)
    return float(2 * MATRIX_SIZE**3 / statistics.median(seconds[1:]))


def memory_rate() -> float:
    """Bytes a second that are read and written when much memory is copied."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(1 + REPEATS):
        began = perf_counter()
        target.copy_(source)
        seconds.append(perf_counter() - began)
    return 2 * COPIED_BYTES / statistics.median(seconds[1:])
