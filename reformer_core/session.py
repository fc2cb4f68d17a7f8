"""Sessions: a document, shared, and a tail of the session's own. A table holds the tensors of all of them, row by row.

Shapes: S sessions in the table, H heads, R rounds, D head size, T tail capacity, K buckets, W positions a local layer
sees.
"""

from collections.abc import Sequence

import torch

from reformer_core.bucket_index import EMPTY, Base, Tail, merged_order
from reformer_core.config import ReformerConfig
from reformer_core.document import Document
from reformer_core.errors import OutOfMemoryError, TooManyTokensError
from reformer_core.memory_plan import tail_capacity
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

    def base(self, layer: int, rows: torch.Tensor) -> Base:
        """The documents' order of LSH layer `layer` as rows int64 [B] see it."""
        return Base(self.offsets[layer, rows], self.base_tokens[rows], self.order_pages[layer, rows])

    def tail(self, layer: int, rows: torch.Tensor, capacity: int) -> Tail:
        """The tails of rows int64 [B], the first `capacity` places of them."""
        return Tail(
            self.tail_buckets[layer, :, :, :, :capacity][rows],
            self.tail_positions[layer, :, :, :, :capacity][rows],
            self.length[rows] - self.base_tokens[rows],
        )

    def store_tail(self, layer: int, rows: torch.Tensor, tail: Tail) -> None:
        """Writes tails back to rows int64 [B]."""
        capacity = tail.buckets.shape[-1]
        self.tail_buckets[layer, :, :, :, :capacity].index_copy_(0, rows, tail.buckets)
        self.tail_positions[layer, :, :, :, :capacity].index_copy_(0, rows, tail.positions)

    def key_rows(self, layer: int, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the pool that hold the keys at positions int64 [B, H, w], for rows int64 [B]."""
        layout = self.pool.layout
        document = self.document_tokens[rows].view(-1, 1, 1)
        unfilled = -document % layout.tokens  # the tail begins on a page of its own
        place = positions + torch.where(positions >= document, unfilled, 0)
        pages = self.token_pages[layer, rows]
        page = pages.gather(1, (place // layout.tokens).flatten(1)).view_as(positions)
        head = torch.arange(positions.shape[1], device=positions.device).view(-1, 1)
        return layout.key_row(page, head, place % layout.tokens)


def tail_pages_needed(table: SessionTable, length: int, tokens: int) -> int:
    """Pages that a session takes for appending so many tokens to a document of `length` tokens, at most."""
    layout, layers = table.pool.layout, table.config.attn_layers.count("lsh")
    # A merge writes the new order beside the old one.
    order_pages = 2 * layout.order_pages(length + tokens) if tokens > table.tail_capacity else 0
    return layers * (layout.token_pages(tokens) + order_pages)


class Session:
    """One row of the table: a document and what was appended to it. Context manager; `close` frees what it holds."""

    def __init__(self, table: SessionTable, document: Document, held_pages: Sequence[int] = ()) -> None:
        """Opens a session on a document.

        Args:
            held_pages: pages, the session's from now on, that it takes from before it asks the pool.

        Raises:
            OutOfMemoryError: the table is full; nothing is taken.
            ValueError: the document is freed.
        """
        self.table, self.document = table, document
        document.acquire()
        try:
            self.row = table.take_row()
        except OutOfMemoryError:
            document.release()
            raise
        lsh_layers = len(document.token_pages)
        self._token_pages: list[list[int]] = [[] for _ in range(lsh_layers)]  # of the tail
        self._order_pages: list[list[int]] = [[] for _ in range(lsh_layers)]  # of the private base, after a merge
        self._held_pages = list(held_pages)
        self._closed = False
        table.document_tokens[self.row] = document.tokens
        table.token_pages[:, self.row, : document.token_pages.shape[1]] = document.token_pages.to(table.length.device)
        self.rewind()

    def rewind(self) -> None:
        """Forgets all that was appended; pages stay with the session."""
        table, document = self.table, self.document
        self._held_pages += [page for pages in (*self._token_pages, *self._order_pages) for page in pages]
        self._token_pages = [[] for _ in self._token_pages]
        self._order_pages = [[] for _ in self._order_pages]
        self.length = document.tokens
        table.length[self.row] = document.tokens
        table.local_keys[:, self.row] = document.local_keys
        table.local_values[:, self.row] = document.local_values
        table.next_logits[self.row] = document.next_logits
        self._set_base(document.tokens, document.order_pages, document.offsets)

    @property
    def closed(self) -> bool:
        """Whether the session is closed."""
        return self._closed

    @property
    def tail_tokens(self) -> int:
        """Tokens in the sorted tail: appended and not merged yet."""
        return self.length - self.base_tokens

    @property
    def pages(self) -> list[int]:
        """All pages that the session holds itself."""
        return [page for pages in (*self._token_pages, *self._order_pages, self._held_pages) for page in pages]

    def reserve(self, tokens: int) -> None:
        """Takes the pages for the keys and values of so many more tokens.

        Raises:
            OutOfMemoryError: there aren't enough; nothing is taken.
            TooManyTokensError: the model hasn't so many positions; nothing is taken.
        """
        layout, limit = self.table.pool.layout, self.table.config.max_tokens
        if self.length + tokens > limit:
            raise TooManyTokensError(self.length + tokens, limit)
        own = self.length - self.document.tokens + tokens
        first = layout.token_pages(self.document.tokens)
        layers = len(self._token_pages)
        missing = layout.token_pages(own) - len(self._token_pages[0]) if layers else 0
        if missing <= 0:
            return
        self._hold(missing * layers)
        for layer, pages in enumerate(self._token_pages):
            start = first + len(pages)
            pages += self._held_pages[:missing]
            del self._held_pages[:missing]
            self.table.token_pages[layer, self.row, start : start + missing] = torch.tensor(pages[-missing:])

    def appended(self, tokens: int) -> None:
        """Notes that so many tokens were written to the table's row."""
        self.length += tokens

    def merge_tail(self) -> None:
        """Merges the tail into a base of the session's own; the document's order isn't written.

        Raises:
            OutOfMemoryError: no pages for the new order; nothing has changed.
        """
        table, pool = self.table, self.table.pool
        layout, layers = pool.layout, len(self._order_pages)
        count = layout.order_pages(self.length)
        self._hold(count * layers)
        new_pages = torch.tensor(self._held_pages[: count * layers], dtype=torch.long).view(layers, count)
        row = torch.tensor([self.row], device=pool.device)
        offsets = torch.empty_like(table.offsets[:, self.row])
        for layer in range(layers):
            base, tail = table.base(layer, row), table.tail(layer, row, table.tail_capacity)
            offsets[layer] = merged_order(pool, base, tail, self.base_tokens, self.tail_tokens, new_pages[layer])
        del self._held_pages[: count * layers]
        self._held_pages += [page for pages in self._order_pages for page in pages]
        self._order_pages = new_pages.tolist()
        self._set_base(self.length, new_pages, offsets)

    def fork(self) -> "Session":
        """A second session on the document, with a copy of what was appended to this one.

        Raises:
            OutOfMemoryError: the table is full, or there are no pages for the copy; nothing is taken.
        """
        table, pool = self.table, self.table.pool
        own = [page for pages in (*self._token_pages, *self._order_pages) for page in pages]
        copies = pool.allocate(len(own))
        try:
            other = Session(table, self.document)
        except OutOfMemoryError:
            pool.release(copies)
            raise
        pool.copy(own, copies)
        copy_of = dict(zip(own, copies, strict=True))
        other._token_pages = [[copy_of[page] for page in pages] for pages in self._token_pages]
        other._order_pages = [[copy_of[page] for page in pages] for pages in self._order_pages]
        other.length, other.base_tokens = self.length, self.base_tokens
        table.copy_row(self.row, other.row)
        first = table.pool.layout.token_pages(self.document.tokens)
        for table_pages, pages, start in (
            (table.token_pages, other._token_pages, first),
            (table.order_pages, other._order_pages, 0),
        ):
            for layer, of_layer in enumerate(pages):
                new = torch.tensor(of_layer, dtype=torch.long)
                table_pages[layer, other.row, start : start + len(of_layer)] = new
        return other

    def _hold(self, count: int) -> None:
        """Makes sure that so many spare pages are held. Raises OutOfMemoryError; nothing is taken."""
        self._held_pages += self.table.pool.allocate(max(count - len(self._held_pages), 0))

    def close(self) -> None:
        """Frees what the session holds; idempotent."""
        if not self._closed:
            self._closed = True
            self.table.pool.release(self.pages)
            self.document.release()
            self.table.give_row(self.row)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_base(self, tokens: int, order_pages: torch.Tensor, offsets: torch.Tensor) -> None:
        table = self.table
        self.base_tokens = tokens
        table.base_tokens[self.row] = tokens
        table.order_pages[:, self.row, : order_pages.shape[1]] = order_pages.to(table.length.device)
        table.offsets[:, self.row] = offsets
        table.tail_buckets[:, self.row] = EMPTY
