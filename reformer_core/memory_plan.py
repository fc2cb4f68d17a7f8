"""What a model takes in memory, by formula: the engine divides its memory by it, `reformer plan` prints it.

Shapes: n tokens, d width, H heads, R rounds, D head size, K buckets.
"""

import bisect
from dataclasses import dataclass

import torch

from reformer_core.config import ReformerConfig
from reformer_core.errors import OutOfMemoryError
from reformer_core.pages import PageLayout

SHORT_SHARE = 8  # sequences of up to about an eighth of the longest length have a workspace of their own


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each part for documents of one length. All values are in bytes but `tokens`."""

    config: ReformerConfig
    dtype: torch.dtype
    tokens: int
    """Length of a document."""

    @classmethod
    def longest_within(
        cls, memory_bytes: int, config: ReformerConfig, dtype: torch.dtype, sessions: int
    ) -> "MemoryPlan":
        """The plan for the longest document that an engine with so much memory and so many sessions can serve.

        Raises:
            OutOfMemoryError: not even the shortest one; `needed_bytes` is the least that would do.
        """

        def needed(tokens: int) -> int:
            plan = cls(config, dtype, tokens)
            return plan.fixed_bytes(sessions) + plan.page_bytes + plan.tail_bytes

        if needed(1) > memory_bytes:
            raise OutOfMemoryError(needed(1), memory_bytes, fits_when_idle=False)
        lengths = range(1, config.max_tokens + 1)
        return cls(config, dtype, bisect.bisect_right(lengths, memory_bytes, key=needed))

    def fixed_bytes(self, sessions: int) -> int:
        """All that an engine for documents up to this length takes besides pages."""
        workspace = self.workspace_bytes + self.short_workspace_bytes
        return self.weights_bytes + sessions * self.session_bytes + workspace

    @property
    def layout(self) -> PageLayout:
        """Of the pages."""
        return PageLayout(self.config, self.dtype)

    @property
    def lsh_layers(self) -> int:
        """LSH layers of the model."""
        return self.config.attn_layers.count("lsh")

    @property
    def weights_bytes(self) -> int:
        """All parameters."""
        c = self.config
        inner = c.num_attention_heads * c.attention_head_size
        feed_forward = 2 * c.hidden_size * c.feed_forward_size + c.feed_forward_size + 3 * c.hidden_size
        lsh = 3 * inner * c.hidden_size + 2 * c.hidden_size + feed_forward
        local = lsh + inner * c.hidden_size
        positions = c.max_position_embeddings * c.hidden_size
        if c.axial_pos_embds:
            positions = sum(rows * width for rows, width in zip(c.axial_pos_shape, c.axial_pos_embds_dim, strict=True))
        head = (2 * c.hidden_size + 1) * c.vocab_size + 4 * c.hidden_size
        local_layers = len(c.attn_layers) - self.lsh_layers
        embeddings = c.vocab_size * c.hidden_size + positions
        return (embeddings + self.lsh_layers * lsh + local_layers * local + head) * self.dtype.itemsize

    @property
    def page_bytes(self) -> int:
        """Pages of a document: keys, values and sorted orders of all LSH layers."""
        pages = self.layout.token_pages(self.tokens) + self.layout.order_pages(self.tokens)
        return self.lsh_layers * pages * self.layout.page_bytes

    @property
    def document_bytes(self) -> int:
        """A document, its pages and the rest of it: offsets, last local chunks, ids."""
        c = self.config
        offsets = self.lsh_layers * c.num_attention_heads * c.num_hashes * (c.total_buckets + 1) * 4
        return self.page_bytes + offsets + self._ring_bytes + 4 * c.vocab_size + 4 * self.tokens

    @property
    def session_bytes(self) -> int:
        """A session's row in the session table, without the pages of its tail."""
        c = self.config
        per_round = self.lsh_layers * c.num_attention_heads * c.num_hashes
        tables = (
            8 * self.lsh_layers * (self.layout.token_pages(c.max_tokens) + 1 + self.layout.order_pages(c.max_tokens))
        )
        index = per_round * 4 * (c.total_buckets + 1 + 2 * tail_capacity(c))
        return 3 * 8 + tables + index + self._ring_bytes + 5 * c.vocab_size

    @property
    def workspace_bytes(self) -> int:
        """What reading a document takes besides its pages, while it is being read."""
        c, n = self.config, self.tokens
        streams = 2 * n * c.hidden_size * self.dtype.itemsize + 4 * n
        if self.lsh_layers == 0:
            return streams
        bucket_bytes = 2 if c.total_buckets <= 2**15 else 4
        heads, rounds = c.num_attention_heads, c.num_hashes
        out = n * heads * c.attention_head_size * self.dtype.itemsize
        hashes = heads * n * (4 + rounds * bucket_bytes)
        # One head's orders, twice while they are put on one ring; and the sums of a combination of rounds.
        ring = 2 * rounds * n * 8 + (2 * n * 4 if rounds > 1 else 0)
        return streams + out + hashes + ring

    @property
    def short_workspace_bytes(self) -> int:
        """What is kept for reading short sequences, so that they needn't wait for long ones."""
        return self.workspace_bytes // SHORT_SHARE

    @property
    def tail_bytes(self) -> int:
        """Pages of a session that generates a few tokens."""
        return self.lsh_layers * self.layout.page_bytes

    @property
    def total_bytes(self) -> int:
        """Serving one such document: weights, the document, reading it, and one session."""
        return self.weights_bytes + self.document_bytes + self.workspace_bytes + self.session_bytes

    @property
    def _ring_bytes(self) -> int:
        c = self.config
        local_layers = len(c.attn_layers) - self.lsh_layers
        return 2 * local_layers * c.num_attention_heads * c.local_window * c.attention_head_size * self.dtype.itemsize


def tail_capacity(config: ReformerConfig) -> int:
    """Places in a session's sorted tail, a head and round: as many as the model has positions, but no more than 1024.

    Inserting a token moves that many entries at most; a full tail is merged, which costs a pass over the whole order.
    """
    return min(1024, config.max_tokens)
