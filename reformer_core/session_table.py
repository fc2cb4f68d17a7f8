"""The tensors of all sessions, a row a session, and how a step reads and writes some of the rows.

Shapes: S sessions in the table, B rows of it in a step, H heads, R rounds, D head size, T tail capacity, K buckets,
W positions a local layer sees, P tokens a page.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from reformer_core.bucket_index import EMPTY, NOWHERE, Base, Tail
from reformer_core.config import ReformerConfig
from reformer_core.errors import OutOfMemoryError
from reformer_core.pages import PagePool


class RowOwner(Protocol):
    """What lies in a row, and is told when that is another one."""

    row: int


class SessionTable:
    """The sessions' tensors, row by row. Layers are counted by kind: the first LSH and the first local layer are 0.

    Rows are moved, so that the sessions of a step lie side by side in the first rows: what a step reads of them are
    views, and not copies.
    """

    def __init__(self, config: ReformerConfig, pool: PagePool, sessions: int, tail_tokens: int | None = None) -> None:
        layout, device = pool.layout, pool.device
        lsh, local = config.attn_layers.count("lsh"), config.attn_layers.count("local")
        heads, rounds, window = config.num_attention_heads, config.num_hashes, config.local_window
        tail_tokens = tail_tokens or tail_capacity(config)
        self.config, self.pool, self.sessions, self.tail_capacity = config, pool, sessions, tail_tokens

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.length = zeros(sessions, dtype=torch.long)  # tokens in all
        self.base_tokens = zeros(sessions, dtype=torch.long)  # sorted in the base: the document's, after a merge more
        self.key_bases = zeros(lsh, sessions, layout.token_pages(config.max_tokens), dtype=torch.long)
        self.order_bases = zeros(lsh, sessions, layout.order_pages(config.max_tokens), dtype=torch.long)
        self.offsets = zeros(lsh, sessions, heads, rounds, config.total_buckets + 1, dtype=torch.int32)
        self.tail_buckets = zeros(lsh, sessions, heads, rounds, tail_tokens, dtype=torch.int32).fill_(EMPTY)
        self.tail_slots = zeros(lsh, sessions, heads, rounds, tail_tokens, dtype=torch.int32).fill_(NOWHERE)
        self.local_keys = zeros(local, sessions, heads, window, config.attention_head_size, dtype=layout.dtype)
        self.local_values = torch.zeros_like(self.local_keys)
        self.next_logits = zeros(sessions, config.vocab_size, dtype=torch.float32)
        self.seen_ids = zeros(sessions, config.vocab_size, dtype=torch.bool)  # in prompt and continuation
        self._owners: list[RowOwner | None] = [None] * sessions

    @property
    def free_rows(self) -> int:
        """Sessions that can still be opened."""
        return self._owners.count(None)

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(x.nbytes for x in vars(self).values() if isinstance(x, torch.Tensor))

    def tail(self, layer: int, rows: slice, capacity: int | None = None) -> Tail:
        """The first places of some rows' tails in LSH layer `layer`, by default all: views, to be written to."""
        return Tail(*(x[layer, rows, ..., :capacity] for x in (self.tail_buckets, self.tail_slots)))

    def take_row(self, owner: RowOwner) -> int:
        """A free row, its owner's from now on. Raises OutOfMemoryError if there is none."""
        if None not in self._owners:
            raise OutOfMemoryError(self.nbytes // self.sessions, 0)
        row = self._owners.index(None)
        self._owners[row] = owner
        return row

    def give_row(self, row: int) -> None:
        """Gives a row back."""
        self._owners[row] = None

    def arrange(self, owners: Sequence[RowOwner]) -> None:
        """Moves these owners to the first rows, in any order; what lies there changes places with them."""
        wanted = set(range(len(owners)))
        vacated = iter(sorted(wanted - {owner.row for owner in owners}))
        for owner in owners:
            if owner.row not in wanted:
                self._swap(next(vacated), owner.row)

    def copy_row(self, source: int, target: int) -> None:
        """Copies all that a row says, the pages' places included."""
        for rows in self._by_row():
            rows[target] = rows[source]

    def _swap(self, first: int, second: int) -> None:
        if self._owners[first] is None:
            self.copy_row(second, first)
        else:
            for rows in self._by_row():
                kept = rows[first].clone()
                rows[first] = rows[second]
                rows[second] = kept
        self._owners[first], self._owners[second] = self._owners[second], self._owners[first]
        for row in (first, second):
            if (owner := self._owners[row]) is not None:
                owner.row = row

    def _by_row(self) -> list[torch.Tensor]:
        """All tensors, rows first."""
        of_layers = [self.key_bases, self.order_bases, self.offsets, self.tail_buckets, self.tail_slots]
        of_layers += [self.local_keys, self.local_values]
        of_all = (self.length, self.base_tokens, self.next_logits, self.seen_ids)
        return [*of_all, *(x.transpose(0, 1) for x in of_layers)]


class SessionRows:
    """B rows that a step works on. What all layers have in common is looked up once.

    Tables of pages, offsets and orders are read entry by entry: they are as long as the longest document may be.
    """

    def __init__(self, table: SessionTable, rows: torch.Tensor) -> None:
        """For rows int64 [B] of the table."""
        self.pool, self._table, self._rows = table.pool, table, rows
        self._base_tokens = table.base_tokens.index_select(0, rows)
        self._head = torch.arange(table.config.num_attention_heads, device=rows.device).view(-1, 1)

    def base(self, layer: int) -> Base:
        """The documents' order in LSH layer `layer`."""
        return Base(self._rows, self._base_tokens, self._table.offsets[layer], self._table.order_bases[layer])

    def rows_of_all_layers(self, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the pool that hold each row's key at its position, int64 [B]: int64 [LSH layers, B, H]."""
        layout, bases = self.pool.layout, self._table.key_bases
        page = (positions >> layout.token_bits) + self._rows * bases.shape[-1]
        base = bases.flatten(1).index_select(1, page).unsqueeze(-1)
        return layout.key_row(base, self._head.flatten(), positions.unsqueeze(-1))

    def key_rows(self, layer: int, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the pool that hold the keys at positions int64 [B, H or 1, w] in LSH layer `layer`, [B, H, w]."""
        layout, bases = self.pool.layout, self._table.key_bases[layer]
        base = bases.take((positions >> layout.token_bits) + self._rows.view(-1, 1, 1) * bases.shape[-1])
        return layout.key_row(base, self._head, positions)


def tail_capacity(config: ReformerConfig) -> int:
    """Places in a session's tail, a head and round: as many as the model has positions, but no more than 1024.

    A step looks at each of them; a full tail is merged, which costs a pass over the whole order.
    """
    return min(1024, config.max_tokens)
