"""The bucket index: which tokens a new token sees, found in time that doesn't grow with the document.

For each head and hash round, a document keeps its *sorted order* (slot -> position) and the bucket offsets in it (CSR).
What comes after the document is a *tail* of tokens, each with its bucket and the slot that it has in the *merged order*
of document and tail. That order is never built:

- Sorting is stable and the newest token is the last of its bucket. So its merged slot is the number of the document's
  tokens with a bucket ≤ its own, one look-up, plus the number of the tail's; and the tail's tokens with a larger bucket
  move on by one slot.
- In merged slot p there is a tail token that has this slot, or else the document's slot p − (tail tokens before it).
- A query in slot s sees its chunk s // L and the chunks before it. All rounds lie on one ring: before the first chunk
  of a round comes the last chunk of the round before.

This equals the last row of a full pass over all tokens, if the length is padded as there
(`ReformerConfig.padded_length`), pads last in every round. Contexts of at most one chunk see everything, once.

Everything is batched with fixed shapes, so that the same code runs on the meta device and in a CUDA graph.

Shapes: B rows (sessions, or successive tokens of one session), H heads, R rounds, T tail capacity, L chunk length,
b chunks before, w = R (1 + b) L slots seen, K buckets, S rows of tables.
"""

from dataclasses import dataclass

import torch

from reformer_core.config import ReformerConfig
from reformer_core.pages import PagePool

EMPTY = 2**31 - 1  # the bucket of an empty place in a tail: after every other
NOWHERE = 2**30  # the slot of an empty place: after every other, and still so when it is moved on
ABSENT = 2**31 - 1  # a position after every other
_ONE_BITS = 32  # of an int64 whose upper half counts tokens while the lower half says which
_ONE = 1 << _ONE_BITS


@dataclass(frozen=True)
class Base:
    """The sorted documents that B rows see, in one layer: the tables of S sessions, and which of them are the rows'."""

    rows: torch.Tensor  # int64 [B], below S
    tokens: torch.Tensor  # int64 [B]
    offsets: torch.Tensor  # int32 [S, H, R, K + 1]: tokens with a smaller bucket
    order_bases: torch.Tensor  # int64 [S, pages]: `PageLayout.order_bases`

    def up_to(self, buckets: torch.Tensor) -> torch.Tensor:
        """Tokens with this bucket or a smaller one: int64 [B, H, R], below K -> int32."""
        _, heads, rounds, ends = self.offsets.shape
        first = torch.arange(1, heads * rounds * ends, ends, device=buckets.device).view(heads, rounds)
        first = first + self.rows.view(-1, 1, 1) * (heads * rounds * ends)
        return self.offsets.take(first + buckets)

    def positions(self, pool: PagePool, lanes: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Positions in the documents' own slots; a lane is head × R + round: int64 [B, ..., w] each -> int32."""
        row = self.rows.view(-1, *[1] * (slots.dim() - 1)) * self.order_bases.shape[-1]
        base = self.order_bases.take((slots >> pool.layout.slot_bits) + row)
        return pool.entries.take(pool.layout.order_entry(base, lanes, slots))


@dataclass(frozen=True)
class Tail:
    """The tails of B rows in one layer, in the order in which their tokens came."""

    buckets: torch.Tensor  # int32 [B, H, R, T]; EMPTY where there is no token
    slots: torch.Tensor  # int32 [B, H, R, T], merged; NOWHERE or more where there is no token

    def append(self, base: Base, buckets: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """One more token a row, in place.

        Args:
            buckets: int64 [B, H, R].
            place: int64 [B], tokens in the tail so far.

        Returns:
            the token's merged slot, int32 [B, H, R].
        """
        new = buckets.unsqueeze(-1).to(torch.int32)
        later = (self.buckets > new).to(torch.int32)  # empty places are later, too
        slot = base.up_to(buckets) + (self.buckets.shape[-1] - later.sum(dim=-1, dtype=torch.int32))
        place = place.view(-1, 1, 1, 1).expand_as(new)
        # From here on nothing is allocated: it is done as a whole, or not at all.
        self.slots.add_(later)
        self.buckets.scatter_(-1, place, new)
        self.slots.scatter_(-1, place, slot.unsqueeze(-1))
        return slot

    def take_back(self, place: torch.Tensor) -> None:
        """Undoes `append` at place int64 [B] in the rows where it was done; the others stay as they are."""
        place = place.view(-1, 1, 1, 1).expand(*self.buckets.shape[:-1], 1)
        later = (self.buckets > self.buckets.gather(-1, place)).to(torch.int32)  # than EMPTY nothing is
        self.slots.sub_(later)
        self.slots.scatter_(-1, place, NOWHERE)
        self.buckets.scatter_(-1, place, EMPTY)

    def append_one_by_one(self, base: Base, buckets: torch.Tensor, place: torch.Tensor) -> tuple["Tail", torch.Tensor]:
        """m tokens appended to one row (B = 1), as `append` would do, in place.

        Args:
            base: of m rows, all the same.
            buckets: int64 [m, H, R].
            place: int64 [m], where in the tail the tokens come.

        Returns:
            m tails: row i's is what token i sees. And the tokens' merged slots, int32 [m, H, R].
        """
        m, heads, rounds = buckets.shape
        capacity, device = self.buckets.shape[-1], buckets.device
        places = place.view(1, 1, 1, m).expand(1, heads, rounds, m)
        new = buckets.to(torch.int32)
        before_it = (self.buckets <= new.unsqueeze(-1)).sum(dim=-1, dtype=torch.int32)  # of the tail as it was
        self.slots.scatter_(-1, places, (base.up_to(buckets) + before_it).permute(1, 2, 0).unsqueeze(0))
        self.buckets.scatter_(-1, places, new.permute(1, 2, 0).unsqueeze(0))
        # Token i moves on whatever is sorted after it: larger buckets, and newer tokens of its own.
        newer = (torch.arange(capacity, device=device) > place.unsqueeze(-1)).view(m, 1, 1, capacity)
        moves = self.buckets + newer.to(torch.int32) > new.unsqueeze(-1)
        slots = self.slots + moves.cumsum(dim=0, dtype=torch.int32)  # [m, H, R, T]
        own = slots.gather(-1, place.view(m, 1, 1, 1).expand(m, heads, rounds, 1)).squeeze(-1)
        self.slots.copy_(slots[-1:])
        return Tail(self.buckets.expand_as(slots), slots.masked_fill_(newer, NOWHERE)), own


class Windows:
    """The chunks that the newest token of each of B rows sees. What is the same in all layers is computed once."""

    def __init__(self, config: ReformerConfig, tokens: torch.Tensor) -> None:
        """For rows of so many tokens, int64 [B], the newest included."""
        self._length, before = config.lsh_attn_chunk_length, config.lsh_num_chunks_before
        heads, rounds, device = config.num_attention_heads, config.num_hashes, tokens.device
        tokens = tokens.view(-1, 1, 1, 1)
        smallest, multiple = min(config.chunk_lengths), config.chunk_multiple
        padded = torch.where(tokens <= smallest, tokens, (tokens + multiple - 1) // multiple * multiple)
        self._chunks = (padded + self._length - 1) // self._length  # a round
        # All rounds' chunks lie on one ring. How far the chunks seen are from the newest token's chunk, had it one in
        # the first round:
        round_ = torch.arange(rounds, device=device).view(-1, 1)
        back = torch.arange(before, -1, -1, device=device)
        self._ring, self._ahead = self._chunks * rounds, self._chunks * round_ - back  # [B, 1, R, 1 + b]
        self._first_lane = torch.arange(0, heads * rounds, rounds, device=device).view(-1, 1, 1)
        # With one chunk only, all is seen once: in the first round's own chunk. The others begin after all tokens.
        self._unseen = (self._chunks == 1) & ~((round_ == 0) & (back == 0))
        self._newest = (tokens - 1).squeeze(-1)  # [B, 1, 1]

    def positions(self, pool: PagePool, base: Base, tail: Tail, slot: torch.Tensor) -> torch.Tensor:
        """Positions of the tokens that the newest token of each row sees in one layer, itself included.

        Args:
            slot: int32 [B, H, R], the newest token's own.

        Returns:
            int64 [B, H, w]; the newest token's where there is nothing.
        """
        chunk = ((slot // self._length).unsqueeze(-1) + self._ahead) % self._ring  # [B, H, R, 1 + b]
        lanes = chunk // self._chunks + self._first_lane
        first = (chunk % self._chunks * self._length).masked_fill_(self._unseen, NOWHERE // 2)
        seen = merged_positions(pool, base, tail, lanes.flatten(1), first.flatten(1), self._length)
        return torch.minimum(seen.view(*lanes.shape[:2], -1), self._newest)


def merged_positions(
    pool: PagePool, base: Base, tail: Tail, lanes: torch.Tensor, first: torch.Tensor, count: int
) -> torch.Tensor:
    """Positions in so many consecutive slots of the merged order.

    Args:
        lanes: int64 [B, x], head × R + round.
        first: int64 [B, x], the first slot.

    Returns:
        int64 [B, x, count]; ABSENT in slots after the last token.
    """
    device, base_tokens = lanes.device, base.tokens.view(-1, 1, 1)
    cells = _tail_cells(tail, lanes, first, count)
    found = cells[..., 1:-1]
    base_slots = torch.arange(count, device=device) + first.unsqueeze(-1)
    base_slots -= cells[..., :-2].cumsum(dim=-1) >> _ONE_BITS
    absent = base_slots >= base_tokens
    in_base = base.positions(pool, lanes.unsqueeze(-1), base_slots.masked_fill_(absent, 0))
    in_base = torch.where(absent, ABSENT, in_base)
    return torch.where(found > 0, (found & (_ONE - 1)) + base_tokens, in_base)


def _tail_cells(tail: Tail, lanes: torch.Tensor, first: torch.Tensor, count: int) -> torch.Tensor:
    """The tail's tokens in so many slots: for arguments as above int64 [B, x, 1 + count + 1].

    A cell for each slot, one for all slots before, and one for all after. What falls into a cell is counted in its
    upper half; the lower half says which token it is, if it is only one.
    """
    all_lanes, capacity = tail.slots.shape[1] * tail.slots.shape[2], tail.slots.shape[-1]
    row_lanes = torch.arange(0, len(lanes) * all_lanes, all_lanes, device=lanes.device).unsqueeze(-1) + lanes
    slots = tail.slots.view(-1, capacity).index_select(0, row_lanes.flatten()).view(*lanes.shape, capacity)
    cell = slots.sub_((first - 1).to(torch.int32).unsqueeze(-1)).clamp_(0, count + 1).long()
    tokens = torch.arange(_ONE, _ONE + capacity, device=lanes.device).expand_as(cell)
    cells = torch.zeros(*lanes.shape, count + 2, dtype=torch.long, device=lanes.device)
    return cells.scatter_add_(-1, cell, tokens)


def write_merged_page(pool: PagePool, base: Base, tail: Tail, page: int, first_slot: int) -> None:
    """Writes the slots of the merged order from first_slot on, of one row (B = 1), to a new page.

    Fixed shapes, a page's worth of work: whoever merges a long document can do something else in between.
    """
    layout = pool.layout
    lanes = torch.arange(layout.heads * layout.rounds, device=base.offsets.device).unsqueeze(0)
    positions = merged_positions(pool, base, tail, lanes, torch.full_like(lanes, first_slot), layout.slots)
    start = page * (layout.page_bytes // 4)
    pool.entries[start : start + positions.numel()] = positions.flatten().to(torch.int32)


def merged_offsets(base: Base, tail: Tail) -> torch.Tensor:
    """Offsets of the merged order of one row (B = 1), int32 [H, R, K + 1]."""
    heads, rounds, ends = base.offsets.shape[1:]
    buckets = torch.arange(ends, device=base.offsets.device, dtype=torch.int32).expand(heads, rounds, -1)
    smaller = torch.searchsorted(tail.buckets[0].sort(dim=-1).values, buckets.contiguous())
    return base.offsets[base.rows[0]] + smaller.to(torch.int32)


def write_order(pool: PagePool, pages: torch.Tensor, lane: int, order: torch.Tensor) -> None:
    """Writes the order int32 [n] of one lane, head × R + round, to the pages of a layer, int64 [pages]."""
    layout = pool.layout
    for page, part in zip(pages.tolist(), order.split(layout.slots), strict=True):
        start = page * (layout.page_bytes // 4) + lane * layout.slots
        pool.entries[start : start + len(part)] = part


def bucket_offsets(buckets: torch.Tensor, total_buckets: int) -> torch.Tensor:
    """Tokens with a smaller bucket: int64 [n] -> int32 [K + 1]."""
    counts = torch.bincount(buckets, minlength=total_buckets)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
