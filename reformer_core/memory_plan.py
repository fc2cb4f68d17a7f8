"""What a model takes in memory, told before anything is loaded: the engine divides its memory by it.

Counted is what tensors take. What is not: the scratch memory of kernels while they run (sorting, matrix products), what
the allocator holds but can't reuse, Python itself, and on the host the ids and scores of requests (4 to 8 bytes a
token). A fifth of the memory there is should be left for them.

Shapes: n tokens, m tokens a slice, d width, H heads, R rounds, D head size, W window, T tail capacity.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from reformer_core.config import ReformerConfig
from reformer_core.document import document_pages
from reformer_core.errors import OutOfMemoryError
from reformer_core.head_loss import HEAD_BLOCK_TOKENS
from reformer_core.model import ReformerModel
from reformer_core.pages import PageLayout, PagePool
from reformer_core.placement import multiplies_bfloat16, product_dtype, second_stream_dtype
from reformer_core.recorded_kernels import RECORDED_WORK
from reformer_core.session_table import SessionTable, tail_capacity
from reformer_core.slicing import extend_tokens, slice_tokens

# What recorded steps may keep, in steps of all sessions while they run: one of the embedded models' keeps half of that.
RECORDED_STEPS, MOST_RECORDED_BYTES = 2, 64 << 20
# So many workspaces, each a quarter of the one before: a document waits only for those less than four times as long.
WORKSPACES, WORKSPACE_RATIO = 4, 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each part for documents of one length. All values are in bytes but `tokens`."""

    config: ReformerConfig
    dtype: torch.dtype
    tokens: int
    """Length of a document."""
    device: torch.device = CPU
    """Where it runs: what is multiplied may have to be converted there, see `placement.product_dtype`."""

    @classmethod
    def longest_within(
        cls, memory_bytes: int, config: ReformerConfig, dtype: torch.dtype, sessions: int, device: torch.device = CPU
    ) -> "MemoryPlan":
        """The plan for the longest document that an engine with so much memory and so many sessions can serve.

        Raises:
            OutOfMemoryError: not even the shortest one; `needed_bytes` is the least that would do.
        """
        shortest = cls(config, dtype, 1, device)
        tokens = shortest._longest(memory_bytes, lambda plan: plan.serving_bytes(sessions))
        if tokens == 0:
            raise OutOfMemoryError(shortest.serving_bytes(sessions), memory_bytes, fits_when_idle=False)
        return replace(shortest, tokens=tokens)

    def longest_text(self, memory_bytes: int, sessions: int) -> int:
        """Tokens of the longest text that an engine with so much memory can score if it is told to; 0: none."""
        return self._longest(memory_bytes, lambda plan: plan.scoring_bytes(sessions))

    def _longest(self, memory_bytes: int, needed: Callable[["MemoryPlan"], int]) -> int:
        """The greatest length at which no more is needed than there is; 0: none."""
        lengths = range(1, self.config.max_tokens + 1)
        return bisect.bisect_right(lengths, memory_bytes, key=lambda tokens: needed(replace(self, tokens=tokens)))

    def check(self, memory_bytes: int, sessions: int) -> None:
        """Raises OutOfMemoryError if an engine with so much memory and so many sessions can't score this length."""
        needed = self.scoring_bytes(sessions)
        if needed > memory_bytes:
            raise OutOfMemoryError(needed, memory_bytes, fits_when_idle=False)

    @property
    def layout(self) -> PageLayout:
        """Of the pages."""
        return PageLayout(self.config, self.dtype)

    @property
    def weights_bytes(self) -> int:
        """All parameters, and the hash rotations."""
        return _weights_bytes(self.config, self.dtype)

    @property
    def page_bytes(self) -> int:
        """A document's pages."""
        return sum(document_pages(self.layout, self.tokens)) * self.layout.page_bytes

    @property
    def score_page_bytes(self) -> int:
        """The pages that scoring takes: one layer's, used again for each layer."""
        return self.layout.token_pages(self.tokens) * self.layout.page_bytes if "lsh" in self.config.attn_layers else 0

    @property
    def document_bytes(self) -> int:
        """A document: its pages, and its token ids on the host; scores, if kept, are another 4 bytes a token."""
        return self.page_bytes + 4 * self.tokens

    @property
    def session_bytes(self) -> int:
        """A session's row in the session table, and what it has seen; without the pages of its tail."""
        return _session_bytes(self.config, self.dtype) + self.config.vocab_size

    @property
    def tail_bytes(self) -> int:
        """A session's pages for some hundred tokens."""
        return self.config.attn_layers.count("lsh") * self.layout.page_bytes

    @property
    def workspace_bytes(self) -> int:
        """What reading a document takes besides its pages, while it is being read."""
        c, n, item = self.config, self.tokens, self.dtype.itemsize
        m = min(n, slice_tokens(c, self.dtype, self.device))
        streams = n * c.hidden_size * (item + second_stream_dtype(self.dtype).itemsize) + 4 * n  # and the token ids
        converted, width, inner = self._converted_item, c.hidden_size, c.num_attention_heads * c.attention_head_size
        block = min(n, HEAD_BLOCK_TOKENS)
        logits = 8 if self._product_item == 4 else 8 + item  # as computed, and in float32, and log-probabilities
        head = block * (c.vocab_size * logits + 4 * width * item)
        if converted:
            computing = block * (4 * c.vocab_size + 4 * width * item + 2 * width * converted)
            head = max(head, computing + 2 * width * c.vocab_size * converted)
        feed_forward = m * (c.feed_forward_size * (2 * item + converted) + width * (item + converted))
        feed_forward += c.feed_forward_size * width * converted
        project = m * (width + 3 * inner) * (item + converted) + width * inner * converted
        slices = max(feed_forward, project) if converted else feed_forward
        layers = [streams + 4 * n + head]  # with the scores
        if "local" in c.attn_layers:
            layers.append(streams + max(m * self._local_token_bytes, slices))
        if "lsh" in c.attn_layers:
            out = n * c.num_attention_heads * c.attention_head_size * item
            bucket = 2 if c.total_buckets <= 2**15 else 4
            hashes = n * (c.num_attention_heads * (4 + c.num_hashes * bucket) + 8)  # norms, buckets, and where keys are
            orders = n * (8 * c.num_hashes + (8 if c.num_hashes > 1 else 0))  # one head's, and its running softmax
            sorting = n * (8 + 8 + bucket)  # one round's order once more, and the sorted buckets
            kept = streams + out + hashes
            layers.append(kept + max(m * self._hash_token_bytes, slices))
            of_head = min(n, m * c.num_attention_heads)
            layers.append(kept + orders + max(of_head * self._lsh_token_bytes, sorting))
        return max(layers)

    @property
    def workspaces(self) -> tuple[int, ...]:
        """What an engine keeps for reading: for a document of this length, and for shorter ones at the same time."""
        return tuple(self.workspace_bytes // WORKSPACE_RATIO**number for number in range(WORKSPACES))

    def step_bytes(self, sessions: int) -> int:
        """What decoding a token of so many sessions takes, or a slice of a prompt, while it runs."""
        c, item = self.config, self.dtype.itemsize
        heads, size, most_rows = c.num_attention_heads, c.attention_head_size, extend_tokens(c, self.device)
        row = [64 * c.vocab_size]  # sampling
        if "local" in c.attn_layers:
            entries = heads * (c.local_window + most_rows)
            row.append(entries * (2 * size * item // most_rows + 8 + item))  # keys and values are the same for all rows
        if "lsh" in c.attn_layers:
            chunks = heads * c.num_hashes * (1 + c.lsh_num_chunks_before)
            tail = tail_capacity(c)
            # The tail as each row sees it; what of it is near the chunks; and the chunks.
            row.append(4 * heads * c.num_hashes * tail + chunks * (12 * tail + 8 * c.lsh_attn_chunk_length))
            copied = 1 if self.device.type == "cpu" else 2  # keys; where there is no kernel for them, values, too
            row.append(chunks * c.lsh_attn_chunk_length * (copied * size * (item + self._converted_item) + 24))
        rows = max(sessions, extend_tokens(c, self.device)) * max(row)
        weight = c.hidden_size * max(heads * size, c.feed_forward_size, 2 * c.vocab_size)  # the largest one, converted
        return max(rows, weight * self._converted_item)

    def recorded_bytes(self, sessions: int) -> int:
        """What the steps that are recorded on a CPU may keep of the results in all layers."""
        is_recorded = self.device.type == "cpu" and self.weights_bytes // self.dtype.itemsize <= RECORDED_WORK
        return min(RECORDED_STEPS * self.step_bytes(sessions), MOST_RECORDED_BYTES) if is_recorded else 0

    def fixed_bytes(self, sessions: int) -> int:
        """All that an engine for documents up to this length takes besides pages."""
        while_running = sum(self.workspaces) + self.step_bytes(sessions) + self.recorded_bytes(sessions)
        return self.weights_bytes + sessions * self.session_bytes + while_running

    def serving_bytes(self, sessions: int) -> int:
        """The least memory of an engine that reads and keeps a document of this length, and continues it."""
        return self.fixed_bytes(sessions) + self.page_bytes + self.tail_bytes

    def scoring_bytes(self, sessions: int) -> int:
        """The least memory of an engine that scores a text of this length, and needn't hold a document so long."""
        return self.fixed_bytes(sessions) + self.score_page_bytes + self.tail_bytes

    @property
    def total_bytes(self) -> int:
        """Serving one such document: weights, the document, reading it, and one session."""
        serving = self.session_bytes + self.step_bytes(sessions=1)
        return self.weights_bytes + self.document_bytes + self.workspace_bytes + serving

    @property
    def _product_item(self) -> int:
        """Bytes of a number that is multiplied."""
        return product_dtype(self.dtype, self.device).itemsize

    @property
    def _converted_item(self) -> int:
        """The same, if it has to be converted for that; else 0."""
        return self._product_item if self._product_item != self.dtype.itemsize else 0

    # What a token of a slice takes at most while it is worked on, in parts of a layer.

    @property
    def _hash_token_bytes(self) -> int:
        """Projected and rotated."""
        c, item = self.config, self.dtype.itemsize
        rotated = sum(c.bucket_factors)
        heads, size = c.num_attention_heads, c.attention_head_size
        vectors = 2 * size * item + size * self._converted_item
        return heads * (c.num_hashes * (rotated * self._product_item + 8) + vectors)

    @property
    def _lsh_token_bytes(self) -> int:
        """One head's mask, as it is made; keys, values and queries as gathered."""
        c, item = self.config, self.dtype.itemsize
        vectors = c.attention_head_size * (4 * item + 3 * self._converted_item)
        return c.lsh_window * (4 + self._product_item) + vectors + 64

    @property
    def _local_token_bytes(self) -> int:
        """A mask for all heads, as it is made; their queries, keys and values as projected and as padded."""
        c, item = self.config, self.dtype.itemsize
        of_a_head = c.attention_head_size * (6 * item + 4 * self._converted_item)
        mask = 4 + self._product_item
        if multiplies_bfloat16(self.dtype, self.device):
            # Separate products: windows are copied, logits and weights held.
            of_a_head += (2 * (1 + c.local_num_chunks_before) * c.attention_head_size + 2 * c.local_window) * item
            mask = item
        return c.local_window * mask + c.num_attention_heads * of_a_head + 24


@lru_cache
def _weights_bytes(config: ReformerConfig, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        model = ReformerModel(config)
    rotations = sum(buffer.nbytes for buffer in model.buffers())  # float32 always
    return model.num_parameters * dtype.itemsize + rotations


@lru_cache
def _session_bytes(config: ReformerConfig, dtype: torch.dtype) -> int:
    layout = PageLayout(config, dtype)
    return SessionTable(config, PagePool(layout, layout.page_bytes, torch.device("meta")), sessions=1).nbytes
