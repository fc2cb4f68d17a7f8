"""How long work is cut: slices of bounded work, so that others get their turns in between."""

from collections.abc import Iterator

from reformer_core.config import ReformerConfig

SLICE_WORK = 2**28  # multiply-adds a slice, without attention's: some 10 ms on two CPU cores, or a few decode steps
LEAST_SLICE_TOKENS, MOST_SLICE_TOKENS = 256, 4096
WINDOW_ENTRIES = 2**25  # of the windows that a slice of appended tokens gathers: 64 MiB of keys in float16
LEAST_EXTEND_TOKENS, MOST_EXTEND_TOKENS = 16, 32  # more are hardly faster, for each has its windows


def slice_tokens(config: ReformerConfig) -> int:
    """Tokens a slice of one layer: a multiple of the chunk lengths, and of bounded work."""
    inner = config.num_attention_heads * config.attention_head_size
    work = config.hidden_size * (2 * config.feed_forward_size + 4 * inner)
    wanted = min(max(SLICE_WORK // work, LEAST_SLICE_TOKENS), MOST_SLICE_TOKENS)
    return max(wanted // config.chunk_multiple, 1) * config.chunk_multiple


def extend_tokens(config: ReformerConfig) -> int:
    """Tokens a slice that is appended to a session, each with windows of its own."""
    row = config.num_attention_heads * config.num_hashes * config.lsh_window * config.attention_head_size
    return min(max(WINDOW_ENTRIES // row, LEAST_EXTEND_TOKENS), MOST_EXTEND_TOKENS)


def parts(length: int, step: int) -> Iterator[slice]:
    """0 to length in slices of `step`, the last one shorter."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
