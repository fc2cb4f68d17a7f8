"""The tensors of all sessions, a row a session, and how a step reads and writes some of the rows.

Shapes: S sessions in the table, B rows of it in a step, H heads, R rounds, D head size, T tail capacity, K buckets,
W positions a local layer sees, P tokens a page.
"""

import torch

from reformer_core.bucket_index import EMPTY, Base, Tail
from reformer_core.config import ReformerConfig
from reformer_core.errors import OutOfMemoryError
from reformer_core.pages import PagePool


class SessionTable:
    """The sessions' tensors, row by row. Layers are counted by kind: the first LSH and the first local layer are 0."""

    def __init__(self, config: ReformerConfig, pool: PagePool, sessions: int, tail_tokens: int | None = None) -> None:
        layout, device = pool.layout, pool.device
        lsh, local = config.attn_layers.count("lsh"), config.attn_layers.count("local")
        heads, rounds, window = config.num_attention_heads, config.num_hashes, config.local_window
        tail_tokens = tail_tokens or tail_capacity(config)
        self.config, self.pool, self.sessions, self.tail_capacity = config, pool, sessions, tail_tokens

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.length = zeros(sessions, dtype=torch.long)  # tokens in all
        self.document_tokens = zeros(sessions, dtype=torch.long)
        self.base_tokens = zeros(sessions, dtype=torch.long)  # sorted in the base: the document's, after a merge more
        # One page of tokens more than fit: the document's last page isn't filled up with the tail.
        self.token_pages = zeros(lsh, sessions, layout.token_pages(config.max_tokens) + 1, dtype=torch.long)
        self.order_pages = zeros(lsh, sessions, layout.order_pages(config.max_tokens), dtype=torch.long)
        self.offsets = zeros(lsh, sessions, heads, rounds, config.total_buckets + 1, dtype=torch.int32)
        self.tail_buckets = zeros(lsh, sessions, heads, rounds, tail_tokens, dtype=torch.int32).fill_(EMPTY)
        self.tail_positions = zeros(lsh, sessions, heads, rounds, tail_tokens, dtype=torch.int32)
        self.local_keys = zeros(local, sessions, heads, window, config.attention_head_size, dtype=layout.dtype)
        self.local_values = torch.zeros_like(self.local_keys)
        self.next_logits = zeros(sessions, config.vocab_size, dtype=torch.float32)
        self._free_rows = list(range(sessions - 1, -1, -1))

    @property
    def free_rows(self) -> int:
        """Sessions that can still be opened."""
        return len(self._free_rows)

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(x.nbytes for x in vars(self).values() if isinstance(x, torch.Tensor))

    def take_row(self) -> int:
        """A free row. Raises OutOfMemoryError if there is none."""
        if not self._free_rows:
            raise OutOfMemoryError(self.nbytes // self.sessions, 0)
        return self._free_rows.pop()

    def give_row(self, row: int) -> None:
        """Gives a row back."""
        self._free_rows.append(row)

    def copy_row(self, source: int, target: int) -> None:
        """Copies all that a row says, the pages' numbers included."""
        for x in (self.length, self.document_tokens, self.base_tokens, self.next_logits):
            x[target] = x[source]
        for x in (self.token_pages, self.order_pages, self.offsets, self.tail_buckets, self.tail_positions):
            x[:, target] = x[:, source]
        for x in (self.local_keys, self.local_values):
            x[:, target] = x[:, source]


class SessionRows:
    """B rows of the table in one step. What all layers have in common is looked up once.

    Tables of pages, offsets and orders are read entry by entry: they are as long as the longest document may be.
    """

    def __init__(self, table: SessionTable, rows: torch.Tensor) -> None:
        """For rows int64 [B]."""
        self.pool, self._table, self._rows = table.pool, table, rows
        self.length = table.length.index_select(0, rows)  # int64 [B]
        self._base_tokens = table.base_tokens.index_select(0, rows)
        self._document_tokens = table.document_tokens.index_select(0, rows).view(-1, 1, 1)
        self._head = torch.arange(table.config.num_attention_heads, device=rows.device).view(-1, 1)

    def base(self, layer: int) -> Base:
        """The documents' order in LSH layer `layer`."""
        return Base(self._rows, self._base_tokens, self._table.offsets[layer], self._table.order_pages[layer])

    def tail(self, layer: int, capacity: int) -> Tail:
        """The tails in LSH layer `layer`, the first `capacity` places of them."""
        buckets, positions = (
            x[layer, ..., :capacity].index_select(0, self._rows)
            for x in (self._table.tail_buckets, self._table.tail_positions)
        )
        return Tail(buckets, positions, self.length - self._base_tokens)

    def store_tail(self, layer: int, tail: Tail) -> None:
        """Writes tails back."""
        capacity = tail.buckets.shape[-1]
        self._table.tail_buckets[layer, ..., :capacity].index_copy_(0, self._rows, tail.buckets)
        self._table.tail_positions[layer, ..., :capacity].index_copy_(0, self._rows, tail.positions)

    def key_rows(self, layer: int, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the pool that hold the keys at positions int64 [B, H or 1, w] in LSH layer `layer`, [B, H, w]."""
        layout, pages = self.pool.layout, self._table.token_pages[layer]
        unfilled = -self._document_tokens % layout.tokens  # the tail begins on a page of its own
        place = positions + torch.where(positions >= self._document_tokens, unfilled, 0)
        page = pages.take(self._rows.view(-1, 1, 1) * pages.shape[-1] + place // layout.tokens)
        return layout.key_row(page, self._head, place % layout.tokens)


def tail_capacity(config: ReformerConfig) -> int:
    """Places in a session's sorted tail, a head and round: as many as the model has positions, but no more than 1024.

    Inserting a token moves that many entries at most; a full tail is merged, which costs a pass over the whole order.
    """
    return min(1024, config.max_tokens)
