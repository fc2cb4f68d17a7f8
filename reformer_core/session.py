"""A session: a document, shared, and a tail of its own, in pages of its own and in one row of the session table."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch

from reformer_core.bucket_index import EMPTY, NOWHERE, Base, Tail, merged_offsets, write_merged_page
from reformer_core.document import Document
from reformer_core.errors import OutOfMemoryError, TooManyTokensError
from reformer_core.session_table import SessionRows, SessionTable


def tail_pages_needed(table: SessionTable, length: int, tokens: int) -> int:
    """Pages that a session takes for appending so many tokens to a document of `length` tokens, at most."""
    layout, layers = table.pool.layout, table.config.attn_layers.count("lsh")
    # A merge writes the new order beside the old one.
    order_pages = 2 * layout.order_pages(length + tokens) if tokens > table.tail_capacity else 0
    token_pages = layout.token_pages(length + tokens) - length // layout.tokens if tokens else 0
    return layers * (token_pages + order_pages)


class Session:
    """One row of the table: a document and what was appended to it. Context manager; `close` frees what it holds.

    Where the document's last page isn't full, the tail goes on in a copy of it.
    """

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
        self._token_pages: list[list[int]] = [[] for _ in range(lsh_layers)]  # from the first that the tail needs on
        self._order_pages: list[list[int]] = [[] for _ in range(lsh_layers)]  # of the private base, after a merge
        self._held_pages = list(held_pages)
        self._closed = False
        with ExitStack() as undo:
            document.acquire()
            undo.callback(document.release)
            self.row = table.take_row(self)
            undo.callback(table.give_row, self.row)
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
        self._set_token_pages(document.token_pages, 0)
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
        pool, limit = self.table.pool, self.table.config.max_tokens
        if self.length + tokens > limit:
            raise TooManyTokensError(self.length + tokens, limit)
        if not self._token_pages or not tokens:
            return
        layers, first = len(self._token_pages), self._first_page
        start = first + len(self._token_pages[0])
        missing = pool.layout.token_pages(self.length + tokens) - start
        if missing <= 0:
            return
        self._hold(missing * layers)
        new_pages = torch.tensor(self._held_pages[: missing * layers]).view(layers, missing)
        if start == first < self.document.token_pages.shape[1]:  # the document's last page isn't full
            pool.copy(self.document.token_pages[:, first].tolist(), new_pages[:, 0].tolist())
        self._set_token_pages(new_pages, start)
        del self._held_pages[: missing * layers]
        for pages, new in zip(self._token_pages, new_pages.tolist(), strict=True):
            pages += new

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
        offsets = torch.empty_like(table.offsets[:, self.row])
        for layer in range(layers):
            for number, page in enumerate(new_pages[layer].tolist()):
                write_merged_page(pool, *self._index(layer), page, number * layout.slots)
                yield
            offsets[layer] = merged_offsets(*self._index(layer))
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
        other._set_token_pages(torch.tensor(other._token_pages, dtype=torch.long), other._first_page)
        if any(other._order_pages):
            other._set_order_pages(torch.tensor(other._order_pages, dtype=torch.long))
        return other

    @property
    def _first_page(self) -> int:
        """The number of the first page that the tail writes to, among all of a layer."""
        return self.document.tokens // self.table.pool.layout.tokens

    def _index(self, layer: int) -> tuple[Base, Tail]:
        row = torch.tensor([self.row], device=self.table.pool.device)  # now: rows are moved
        return SessionRows(self.table, row).base(layer), self.table.tail(layer, slice(self.row, self.row + 1))

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
        table.offsets[:, self.row] = offsets
        table.tail_buckets[:, self.row] = EMPTY
        table.tail_slots[:, self.row] = NOWHERE
        self._set_order_pages(order_pages)

    def _set_token_pages(self, pages: torch.Tensor, start: int) -> None:
        """Pages int64 [layers, k] hold the keys and values from page number `start` on."""
        bases = self.table.pool.layout.key_bases(pages, start).to(self.table.key_bases.device)
        self.table.key_bases[:, self.row, start : start + pages.shape[-1]] = bases

    def _set_order_pages(self, pages: torch.Tensor) -> None:
        """Pages int64 [layers, k] hold the base's order."""
        bases = self.table.pool.layout.order_bases(pages).to(self.table.order_bases.device)
        self.table.order_bases[:, self.row, : pages.shape[-1]] = bases
