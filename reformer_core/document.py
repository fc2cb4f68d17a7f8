"""A document that has been read: keys, values and bucket index in pages, immutable, shared by all sessions on it."""

from dataclasses import dataclass, field

import torch

from reformer_core.pages import PagePool


@dataclass(eq=False)
class Document:
    """What prefill leaves behind.

    The owner calls `close` once; the pages are freed when the last session on the document is closed, too.

    Shapes: n tokens, H heads, R rounds, D head size, K buckets, W positions a local layer sees; for each LSH layer and
    each local layer, in the model's order.
    """

    pool: PagePool = field(repr=False)
    token_ids: torch.Tensor = field(repr=False)  # int32 [n], CPU
    token_pages: torch.Tensor = field(repr=False)  # int64 [LSH layers, pages], CPU
    order_pages: torch.Tensor = field(repr=False)  # int64 [LSH layers, pages], CPU
    offsets: torch.Tensor = field(repr=False)  # int32 [LSH layers, H, R, K + 1]
    local_keys: torch.Tensor = field(repr=False)  # [local layers, H, W, D]; position p lies at p % W
    local_values: torch.Tensor = field(repr=False)
    next_logits: torch.Tensor = field(repr=False)  # float32 [vocab], of the token after the last
    scores: torch.Tensor | None = field(default=None, repr=False)  # float32 [n], CPU; nan first
    _references: int = 1
    _closed: bool = False

    @property
    def tokens(self) -> int:
        """Length n."""
        return len(self.token_ids)

    @property
    def pages(self) -> list[int]:
        """All pages that the document holds."""
        return [*self.token_pages.flatten().tolist(), *self.order_pages.flatten().tolist()]

    @property
    def page_count(self) -> int:
        """How many pages it holds."""
        return self.token_pages.numel() + self.order_pages.numel()

    @property
    def nbytes(self) -> int:
        """Memory that the document holds, pages and the rest."""
        rest = (self.token_ids, self.offsets, self.local_keys, self.local_values, self.next_logits, self.scores)
        return self.page_count * self.pool.layout.page_bytes + sum(x.nbytes for x in rest if x is not None)

    @property
    def closed(self) -> bool:
        """Whether the owner has given the document up."""
        return self._closed

    @property
    def freed(self) -> bool:
        """Whether nobody uses the document any more: its pages are gone."""
        return self._references == 0

    def acquire(self) -> None:
        """One more user. Raises ValueError if the document is freed."""
        if self.freed:
            raise ValueError("the document is freed")
        self._references += 1

    def release(self) -> None:
        """One user less."""
        self._references -= 1
        if self._references == 0:
            self.pool.release(self.pages)

    def close(self) -> None:
        """The owner's word that the document isn't wanted any more; idempotent."""
        if not self._closed:
            self._closed = True
            self.release()
