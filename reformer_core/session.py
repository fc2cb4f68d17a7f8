"""A session: a document, shared, and a tail of its own, in pages of its own and in one row of the session table."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch

from reformer_core.bucket_index import EMPTY, merged_offsets, write_merged_page
from reformer_core.document import Document
from reformer_core.errors import OutOfMemoryError, TooManyTokensError
from reformer_core.session_table import SessionRows, SessionTable


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
            held_pages: pages, the session's once it is open, that it takes from before it asks the pool.

        Raises:
            OutOfMemoryError: the table is full; nothing is taken.
            ValueError: the document is freed.
        """
        self.table, self.document = table, document
        lsh_layers = len(document.token_pages)
        self._token_pages: list[list[int]] = [[] for _ in range(lsh_layers)]  # of the tail
        self._order_pages: list[list[int]] = [[] for _ in range(lsh_layers)]  # of the private base, after a merge
        self._held_pages = list(held_pages)
        self._closed = False
        with ExitStack() as undo:
            document.acquire()
            undo.callback(document.release)
            self.row = table.take_row()
            undo.callback(table.give_row, self.row)
            table.document_tokens[self.row] = document.tokens
            token_pages = document.token_pages.to(table.length.device)
            table.token_pages[:, self.row, : token_pages.shape[1]] = token_pages
            self.rewind()
            undo.pop_all()

    def rewind(self) -> None:
        """Forgets all that was appended; pages stay with the session."""
        table, document = self.table, self.document
        self._held_pages += [page for pages in (*self._token_pages, *self._order_pages) for page in pages]
        self._token_pages = [[] for _ in self._token_pages]
        self._order_pages = [[] for _ in self._order_pages]
        self.length = document.tokens
        table.length[self.row] = document.tokens
        state = document.state()
        table.local_keys[:, self.row] = state.local_keys
        table.local_values[:, self.row] = state.local_values
        table.next_logits[self.row] = state.next_logits
        self._set_base(document.tokens, document.order_pages, state.offsets)

    @property
    def closed(self) -> bool:
        """Whether the session is closed."""
        return self._closed

    @property
    def tail_tokens(self) -> int:
        """Tokens in the sorted tail: appended and not merged yet."""
        return self.length - self.base_tokens

    @property
    def tail_is_full(self) -> bool:
        """Whether the tail has to be merged before anything is appended."""
        return self.tail_tokens == self.table.tail_capacity

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
        """Merges the tail into a base of the session's own, in one go. Raises as `merge_slices` does."""
        for _ in self.merge_slices():
            pass

    def merge_slices(self) -> Iterator[None]:
        """Merges the tail into a base of the session's own; the document's order isn't written.

        Yields after each page. Until it is over, nothing may be done with the session but to close it.

        Raises:
            OutOfMemoryError: no pages for the new order; nothing has changed.
        """
        table, pool = self.table, self.table.pool
        layout, layers = pool.layout, len(self._order_pages)
        count = layout.order_pages(self.length)
        self._hold(count * layers)
        new_pages = torch.tensor(self._held_pages[: count * layers], dtype=torch.long).view(layers, count)
        row = SessionRows(table, torch.tensor([self.row], device=pool.device))
        offsets = torch.empty_like(table.offsets[:, self.row])
        for layer in range(layers):
            base, tail = row.base(layer), row.tail(layer, table.tail_capacity)
            for number, page in enumerate(new_pages[layer].tolist()):
                write_merged_page(pool, base, tail, page, number * layout.slots)
                yield
            offsets[layer] = merged_offsets(base, tail)
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
