"""The page pool: all memory for keys, values and sorted orders, allocated once, handed out in pages of one size.

A page holds either the keys and values of P consecutive tokens in one LSH layer, or the sorted order (slot ->
position) of S consecutive slots, for all heads and hash rounds of one layer. Both kinds are views of the same arena:

    keys and values   [page, 2, H, P, D] in the model's dtype, addressed as rows of D
    order             [page, H, R, S] int32, addressed as single entries

Free pages are what admission, eviction and the memory metrics count.
"""

from collections.abc import Sequence

import torch

from reformer_core.config import ReformerConfig
from reformer_core.errors import OutOfMemoryError

PAGE_TOKENS = 256  # P: a session's tail of a few tokens shouldn't cost much, a document shouldn't need many pages


class PageLayout:
    """Sizes of a page, and where in the arena things lie. Only arithmetic: nothing is allocated.

    Whoever holds pages looks them up in a table of *bases*: where the first thing of all would lie if all pages were
    like this one and lay side by side. So a place is `bases[number >> bits] + number`, and nothing is divided.
    """

    def __init__(self, config: ReformerConfig, dtype: torch.dtype, page_tokens: int = PAGE_TOKENS) -> None:
        """Args:
        page_tokens: P, a power of two.
        """
        self.heads, self.rounds, self.head_size = (
            config.num_attention_heads,
            config.num_hashes,
            config.attention_head_size,
        )
        self.config, self.dtype = config, dtype
        self.tokens, self.token_bits = page_tokens, page_tokens.bit_length() - 1
        if page_tokens != 1 << self.token_bits:
            raise ValueError(f"the tokens of a page must be a power of two, but are {page_tokens}")
        self.page_bytes = 2 * self.heads * page_tokens * self.head_size * dtype.itemsize
        fitting = self.page_bytes // (4 * self.heads * self.rounds)
        if fitting == 0:
            raise ValueError(f"pages of {page_tokens} tokens can't hold the order of {self.rounds} hash rounds")
        self.slot_bits = fitting.bit_length() - 1
        self.slots = 1 << self.slot_bits

    def token_pages(self, tokens: int) -> int:
        """Pages for the keys and values of so many tokens, in one layer."""
        return -(-tokens // self.tokens)

    def order_pages(self, tokens: int) -> int:
        """Pages for the order of so many tokens, in one layer."""
        return -(-tokens // self.slots)

    def key_bases(self, pages: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Bases of pages int64 [..., k] that hold keys and values from the page number `first` of their owner on."""
        number = torch.arange(first, first + pages.shape[-1], device=pages.device)
        return pages * (2 * self.heads * self.tokens) - number * self.tokens

    def order_bases(self, pages: torch.Tensor) -> torch.Tensor:
        """Bases of all pages int64 [..., k] of an order."""
        number = torch.arange(pages.shape[-1], device=pages.device)
        return pages * (self.page_bytes // 4) - number * self.slots

    def key_row(self, base: torch.Tensor, head: torch.Tensor | int, position: torch.Tensor) -> torch.Tensor:
        """Row of a key in `PagePool.rows`, from its page's base; its value is `value_distance` rows further."""
        return base + position + head * self.head_distance

    @property
    def head_distance(self) -> int:
        """Rows from a head's key to the next head's."""
        return self.tokens

    @property
    def value_distance(self) -> int:
        """Rows from a key to its value."""
        return self.heads * self.tokens

    def order_entry(self, base: torch.Tensor, lane: torch.Tensor | int, slot: torch.Tensor) -> torch.Tensor:
        """Index in `PagePool.entries` of a slot's entry, from its page's base; its lane is head × rounds + round."""
        return base + slot + lane * self.slots


class PagePool:
    """The arena and the list of its free pages. Not thread-safe: the engine's thread owns it."""

    def __init__(self, layout: PageLayout, memory_bytes: int, device: torch.device) -> None:
        """Allocates as many whole pages as fit into memory_bytes, at least one."""
        self.layout = layout
        self.total_pages = max(memory_bytes // layout.page_bytes, 1)
        arena = torch.empty(self.total_pages * layout.page_bytes, dtype=torch.uint8, device=device)
        self.rows = arena.view(layout.dtype).view(-1, layout.head_size)
        self.entries = arena.view(torch.int32)
        self._bytes = arena.view(self.total_pages, layout.page_bytes)
        self._free = list(range(self.total_pages - 1, -1, -1))

    @property
    def device(self) -> torch.device:
        """Where the arena is."""
        return self.rows.device

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def used_pages(self) -> int:
        """Pages that are held."""
        return self.total_pages - len(self._free)

    @property
    def nbytes(self) -> int:
        """Size of the arena."""
        return self.total_pages * self.layout.page_bytes

    def allocate(self, count: int) -> list[int]:
        """Takes pages; their content is undefined.

        Raises:
            OutOfMemoryError: fewer are free; nothing is taken.
        """
        if count > len(self._free):
            size = self.layout.page_bytes
            raise OutOfMemoryError(count * size, len(self._free) * size, fits_when_idle=count <= self.total_pages)
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def release(self, pages: Sequence[int]) -> None:
        """Gives pages back."""
        self._free.extend(pages)

    def write(self, pages: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
        """Writes tensors to pages, int64 [k], CPU, one behind the other, those with the largest items first."""
        content = torch.cat([x.flatten().view(torch.uint8) for x in tensors])
        padded = torch.nn.functional.pad(content, (0, len(pages) * self.layout.page_bytes - len(content)))
        self.write_raw(pages, padded.view(len(pages), -1))

    def read(self, pages: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """A copy of tensors that were written to pages, int64 [k], CPU; `like` has their shapes and dtypes."""
        content = self.read_raw(pages).flatten()
        parts = content[: sum(x.nbytes for x in like)].split([x.nbytes for x in like])
        return [part.view(x.dtype).view(x.shape) for part, x in zip(parts, like, strict=True)]

    def read_raw(self, pages: torch.Tensor) -> torch.Tensor:
        """A copy of whole pages, int64 [k], CPU -> uint8 [k, page bytes]."""
        return self._bytes[pages.to(self.device)]

    def write_raw(self, pages: torch.Tensor, content: torch.Tensor) -> None:
        """Writes whole pages, int64 [k], CPU, from uint8 [k, page bytes] on any device."""
        self._bytes[pages.to(self.device)] = content.to(self.device)

    def clear(self, pages: torch.Tensor) -> None:
        """Writes zeros to pages, int64 [k], CPU."""
        self._bytes[pages.to(self.device)] = 0

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies pages' contents."""
        to, from_ = (torch.tensor(pages, dtype=torch.long, device=self.device) for pages in (target, source))
        self._bytes[to] = self._bytes[from_]

    def check(self, held: Sequence[int]) -> None:
        """Raises AssertionError unless each page is either free or held, and only once; for tests."""
        everything = sorted([*self._free, *held])
        assert everything == list(range(self.total_pages)), "a page is lost, or held twice"
