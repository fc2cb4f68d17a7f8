"""A document that has been read: keys, values and bucket index in pages, immutable, shared by all sessions on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from reformer_core.config import ReformerConfig
from reformer_core.pages import PageLayout, PagePool


@dataclass(frozen=True)
class DocumentState:
    """What a session starts from, besides the keys, values and orders: it is kept in pages, and copied to be used.

    Shapes: H heads, R rounds, D head size, K buckets, W positions a local layer sees; for each LSH layer and each local
    layer, in the model's order.
    """

    offsets: torch.Tensor  # int32 [LSH layers, H, R, K + 1]
    next_logits: torch.Tensor  # float32 [vocab], of the token after the last
    local_keys: torch.Tensor  # [local layers, H, W, D]; position p lies at p % W
    local_values: torch.Tensor

    @classmethod
    def empty(cls, config: ReformerConfig, dtype: torch.dtype, device: torch.device | str) -> "DocumentState":
        """All zeros."""
        layers, heads = config.attn_layers.count("lsh"), config.num_attention_heads
        offsets = (layers, heads, config.num_hashes, config.total_buckets + 1)
        local_keys = (len(config.attn_layers) - layers, heads, config.local_window, config.attention_head_size)
        return cls(
            torch.zeros(offsets, dtype=torch.int32, device=device),
            torch.zeros(config.vocab_size, dtype=torch.float32, device=device),
            torch.zeros(local_keys, dtype=dtype, device=device),
            torch.zeros(local_keys, dtype=dtype, device=device),
        )

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(x.nbytes for x in vars(self).values())


def document_pages(layout: PageLayout, tokens: int) -> tuple[int, int, int]:
    """Pages of a document of so many tokens: for keys and values, for orders, for the state."""
    layers = layout.config.attn_layers.count("lsh")
    state_bytes = DocumentState.empty(layout.config, layout.dtype, "meta").nbytes
    state_pages = -(-state_bytes // layout.page_bytes)
    return layers * layout.token_pages(tokens), layers * layout.order_pages(tokens), state_pages


def document_bytes(config: ReformerConfig, dtype: torch.dtype, tokens: int, *, with_scores: bool = False) -> int:
    """Memory of a document of so many tokens, as `Document.nbytes`."""
    layout = PageLayout(config, dtype)
    host_bytes = tokens * (torch.int32.itemsize + (torch.float32.itemsize if with_scores else 0))
    return sum(document_pages(layout, tokens)) * layout.page_bytes + host_bytes


def arrange_pages(
    layout: PageLayout, pages: Sequence[int], tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A document's pages by their use: keys and values, orders, int64 [LSH layers, pages], and the state, [pages]; CPU.

    The other way round, `Document.pages` has them in this order.
    """
    counts = document_pages(layout, tokens)
    token_pages, order_pages, state_pages = torch.tensor(pages, dtype=torch.long).split(counts)
    layers = layout.config.attn_layers.count("lsh")
    by_layer = (layers, -1) if layers else (0, 0)
    return token_pages.view(by_layer), order_pages.view(by_layer), state_pages


@dataclass(eq=False)
class Document:
    """What prefill leaves behind.

    The owner calls `close` once; the pages are freed when the last session on the document is closed, too.

    Shape: n tokens.
    """

    pool: PagePool = field(repr=False)
    token_ids: torch.Tensor = field(repr=False)  # int32 [n], CPU
    token_pages: torch.Tensor = field(repr=False)  # int64 [LSH layers, pages], CPU
    order_pages: torch.Tensor = field(repr=False)  # int64 [LSH layers, pages], CPU
    state_pages: torch.Tensor = field(repr=False)  # int64 [pages], CPU
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
        pages: list[int] = self._every_page().tolist()
        return pages

    @property
    def page_count(self) -> int:
        """How many pages it holds."""
        return self.token_pages.numel() + self.order_pages.numel() + self.state_pages.numel()

    @property
    def nbytes(self) -> int:
        """Memory that the document holds: pages, and on the host its ids and scores."""
        scores_bytes = 0 if self.scores is None else self.scores.nbytes
        return self.page_count * self.pool.layout.page_bytes + self.token_ids.nbytes + scores_bytes

    def state(self) -> DocumentState:
        """A copy of what a session starts from."""
        layout = self.pool.layout
        like = DocumentState.empty(layout.config, layout.dtype, "meta")
        return DocumentState(*self.pool.read(self.state_pages, list(vars(like).values())))

    def read_pages(self, start: int, stop: int) -> torch.Tensor:
        """A copy of the pages from the one number `start` to the one before `stop`, uint8 [pages, page bytes], CPU."""
        return self.pool.read_raw(self._every_page()[start:stop]).cpu()

    def _every_page(self) -> torch.Tensor:
        return torch.cat([pages.flatten() for pages in (self.token_pages, self.order_pages, self.state_pages)])

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
