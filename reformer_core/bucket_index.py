"""The bucket index: which tokens a new token sees, found in time that doesn't grow with the document.

For each head and hash round, a document keeps its *sorted order* (slot -> position) and the bucket offsets in it (CSR).
What comes after the document is a small *tail*, sorted the same way. The sorted order of everything is the merge of the
two, and it is never built:

- The rank of tail token j, with bucket b, is `offsets[b + 1] + j`: the document's tokens with a bucket ≤ b, then the
  tail's before it. Sorting is stable and the tail is newer, so in each bucket the document's tokens come first.
- Merged slot p is looked up among the tail's ranks. A hit is that tail token; a miss is the document's slot
  p − (tail tokens before it).
- A query in slot s sees its chunk s // L and the chunks before it. All rounds lie on one ring: before the first chunk
  of a round comes the last chunk of the round before.

This equals the last row of a full pass over all tokens, if the length is padded as there
(`ReformerConfig.padded_length`), pads last in every round. Contexts of at most one chunk see everything, once.

Everything is batched with fixed shapes, so that the same code runs on the meta device and in a CUDA graph.

Shapes: B rows (sessions, or successive tokens of one session), H heads, R rounds, T tail capacity, w slots looked up,
L chunk length, b chunks before, K buckets.
"""

from dataclasses import dataclass

import torch

from reformer_core.config import ReformerConfig
from reformer_core.pages import PagePool

ABSENT = 2**62  # a position after every other: padding, and what isn't seen
EMPTY = 2**31 - 1  # the bucket of an empty place in a tail: after every other
_ROUND_DISTANCE = 2**40  # more than there are slots


@dataclass(frozen=True)
class Base:
    """The sorted documents that B rows see, in one layer: the tables of S sessions, and which of them are the rows'."""

    rows: torch.Tensor  # int64 [B], below S
    tokens: torch.Tensor  # int64 [B]
    offsets: torch.Tensor  # int32 [S, H, R, K + 1]: tokens with a smaller bucket
    order_pages: torch.Tensor  # int64 [S, pages]

    def smaller(self, buckets: torch.Tensor) -> torch.Tensor:
        """Tokens with a smaller bucket: int64 [B, H, R, w], 0 to K each -> int32."""
        _, heads, rounds, ends = self.offsets.shape
        lane = torch.arange(heads * rounds, device=buckets.device).view(heads, rounds, 1)
        lane = lane + self.rows.view(-1, 1, 1, 1) * (heads * rounds)
        return self.offsets.take(lane * ends + buckets)

    def positions(self, pool: PagePool, rounds: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Positions in the documents' own slots of these rounds; int64 [B, H, R, w], broadcastable -> int32."""
        layout = pool.layout
        page = self.order_pages.take(self.rows.view(-1, 1, 1, 1) * self.order_pages.shape[-1] + slots // layout.slots)
        head = torch.arange(layout.heads, device=slots.device).view(-1, 1, 1)
        return pool.entries.take(layout.order_entry(page, head, rounds, slots % layout.slots))


@dataclass(frozen=True)
class Tail:
    """The sorted tail of B rows in one layer. Empty places have bucket EMPTY, and so sort last."""

    buckets: torch.Tensor  # int32 [B, H, R, T], ascending
    positions: torch.Tensor  # int32 [B, H, R, T]
    tokens: torch.Tensor  # int64 [B]

    def appended(self, buckets: torch.Tensor, position: torch.Tensor) -> tuple["Tail", torch.Tensor]:
        """One more token a row: buckets int [B, H, R], position int64 [B].

        Returns:
            the new tail, and where in it the token is, int64 [B, H, R].
        """
        buckets = buckets.to(torch.int32).unsqueeze(-1)
        place = torch.searchsorted(self.buckets, buckets, right=True)  # the newest of its bucket
        lane = torch.arange(self.buckets.shape[-1], device=place.device)
        source = (lane - (lane > place).long()).clamp_(min=0)
        here = lane == place
        tail = Tail(
            torch.where(here, buckets, self.buckets.gather(-1, source)),
            torch.where(here, position.view(-1, 1, 1, 1).to(torch.int32), self.positions.gather(-1, source)),
            self.tokens + 1,
        )
        return tail, place.squeeze(-1)

    def appended_one_by_one(self, buckets: torch.Tensor, positions: torch.Tensor) -> tuple["Tail", torch.Tensor]:
        """m tokens appended to one row; the tail as each of them sees it.

        Args:
            buckets: int [m, H, R].
            positions: int64 [m], consecutive.

        Returns:
            m rows: row i's tail holds tokens 0 to i. And where in its row's tail each token is, int64 [m, H, R].
        """
        m, heads, rounds = buckets.shape
        capacity = self.buckets.shape[-1]
        new = buckets.permute(1, 2, 0).unsqueeze(0).to(torch.int32)  # [1, H, R, m]
        all_buckets, source = torch.sort(torch.cat([self.buckets, new], dim=-1), dim=-1, stable=True)
        new_positions = positions.to(torch.int32).expand(1, heads, rounds, m)
        all_positions = torch.cat([self.positions, new_positions], dim=-1).gather(-1, source)
        # In row i only what isn't newer than token i is there: the rest is squeezed out.
        empty = source < capacity
        empty &= source >= self.tokens.view(-1, 1, 1, 1)
        present = (all_positions <= positions.view(m, 1, 1, 1)) & ~empty  # [m, H, R, T + m]
        place = torch.where(present, present.cumsum(dim=-1) - 1, capacity)  # the others fall into one place too many
        into = (m, heads, rounds, capacity + 1)
        row_buckets = torch.full(into, EMPTY, dtype=torch.int32, device=place.device)
        row_buckets.scatter_(-1, place, all_buckets.expand_as(place))
        row_positions = torch.zeros(into, dtype=torch.int32, device=place.device)
        row_positions.scatter_(-1, place, all_positions.expand_as(place))
        tail = Tail(
            row_buckets[..., :capacity].contiguous(),
            row_positions[..., :capacity].contiguous(),
            self.tokens + 1 + torch.arange(m, device=place.device),
        )
        own = (tail.positions == positions.view(m, 1, 1, 1)) & (tail.buckets != EMPTY)
        return tail, own.to(torch.int8).argmax(dim=-1)

    def slots(self, base: Base) -> torch.Tensor:
        """Merged slot of each tail token, ascending, int64 [B, H, R, T]; empty places come after all tokens."""
        last = base.offsets.shape[-1] - 1
        before = base.smaller((self.buckets.long() + 1).clamp_(max=last))
        return before + torch.arange(self.buckets.shape[-1], device=before.device)


class Windows:
    """The chunks that the newest token of each of B rows sees. What is the same in all layers is computed once."""

    def __init__(self, config: ReformerConfig, tokens: torch.Tensor) -> None:
        """For rows of so many tokens, int64 [B], the newest included."""
        self._length, before = config.lsh_attn_chunk_length, config.lsh_num_chunks_before
        device, rounds = tokens.device, torch.arange(config.num_hashes, device=tokens.device).view(-1, 1)
        self._total = tokens.view(-1, 1, 1, 1)
        smallest, multiple = min(config.chunk_lengths), config.chunk_multiple
        padded = torch.where(self._total <= smallest, self._total, (self._total + multiple - 1) // multiple * multiple)
        self._chunks = (padded + self._length - 1) // self._length  # a round
        # All rounds' chunks lie on one ring: where a round begins, and how far back the chunks seen are.
        self._ring, self._round_start = self._chunks * config.num_hashes, self._chunks * rounds
        self._back = torch.arange(before, -1, -1, device=device)
        self._lane = torch.arange(self._length, device=device)
        # With one chunk only, all is seen once: in the first round's own chunk.
        first_own = (rounds == 0) & (self._back == 0).repeat_interleave(self._length)
        self._unseen = (self._chunks == 1) & ~first_own  # [B, 1, R, (1 + b) L]

    def positions(self, pool: PagePool, base: Base, tail: Tail, place: torch.Tensor) -> torch.Tensor:
        """Positions of the tokens that the newest token of each row sees in one layer, itself included.

        Args:
            place: int64 [B, H, R], where in its tail that token is.

        Returns:
            int64 [B, H, R, (1 + b) L]; ABSENT where there is nothing.
        """
        tail_slots = tail.slots(base)
        own = self._round_start + tail_slots.gather(-1, place.unsqueeze(-1)) // self._length
        seen = (own - self._back) % self._ring  # [B, H, R, 1 + b]
        rounds = (seen // self._chunks).repeat_interleave(self._length, dim=-1)
        slots = ((seen % self._chunks * self._length).unsqueeze(-1) + self._lane).flatten(-2)
        positions = merged_positions(pool, base, tail, tail_slots, rounds, slots)
        return positions.masked_fill_(self._unseen | (slots >= self._total), ABSENT)


def merged_positions(
    pool: PagePool, base: Base, tail: Tail, tail_slots: torch.Tensor, rounds: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """Positions in slots of the merged order; rounds and slots int64 [B, H, R, w] -> int64.

    Undefined in slots after the last token.
    """
    total_rounds, capacity = tail_slots.shape[-2:]
    # One search for all rounds: on a common axis, each round's slots come after those of the round before.
    start = torch.arange(total_rounds, device=slots.device).unsqueeze(-1) * _ROUND_DISTANCE
    tail_keys = (tail_slots + start).flatten(-2)  # [B, H, R T], ascending
    keys = (slots + rounds * _ROUND_DISTANCE).flatten(-2)  # [B, H, R w]
    rank = torch.searchsorted(tail_keys, keys)
    nearest = rank.clamp(max=tail_keys.shape[-1] - 1)
    in_tail = (tail_keys.gather(-1, nearest) == keys).view_as(slots)
    in_tail_position = tail.positions.flatten(-2).gather(-1, nearest).view_as(slots)
    base_slots = slots - (rank.view_as(slots) - rounds * capacity)
    last = (base.tokens - 1).view(-1, 1, 1, 1)
    in_base_position = base.positions(pool, rounds, torch.minimum(base_slots, last))
    return torch.where(in_tail, in_tail_position, in_base_position).long()


def write_merged_page(pool: PagePool, base: Base, tail: Tail, page: int, first_slot: int) -> None:
    """Writes the slots of the merged order from first_slot on, of one row (B = 1), to a new page.

    Fixed shapes, a page's worth of work: whoever merges a long document can do something else in between.
    """
    slots_a_page, device = pool.layout.slots, base.offsets.device
    heads, rounds = base.offsets.shape[1:3]
    place = tail.slots(base) - first_slot
    before = (place < 0).sum(dim=-1, keepdim=True)  # tail tokens on earlier pages
    place = torch.where((place >= 0) & (place < slots_a_page), place, slots_a_page)  # the others fall into one too many
    in_tail = torch.full((1, heads, rounds, slots_a_page + 1), -1, dtype=torch.int32, device=device)
    in_tail = in_tail.scatter_(-1, place, tail.positions)[..., :-1]
    hit = in_tail >= 0
    slots = first_slot + torch.arange(slots_a_page, device=device)
    base_slots = (slots - before - hit.cumsum(dim=-1)).clamp(min=0)
    last = (base.tokens - 1).clamp(min=0).view(-1, 1, 1, 1)
    in_base = base.positions(pool, torch.arange(rounds, device=device).unsqueeze(-1), torch.minimum(base_slots, last))
    start = page * (pool.layout.page_bytes // 4)
    pool.entries[start : start + hit.numel()] = torch.where(hit, in_tail, in_base.to(torch.int32)).flatten()


def merged_offsets(base: Base, tail: Tail) -> torch.Tensor:
    """Offsets of the merged order of one row (B = 1), int32 [H, R, K + 1]."""
    heads, rounds, ends = base.offsets.shape[1:]
    buckets = torch.arange(ends, device=base.offsets.device, dtype=torch.int32).expand(heads, rounds, -1)
    smaller = torch.searchsorted(tail.buckets[0], buckets.contiguous())
    return base.offsets[base.rows[0]] + smaller.to(torch.int32)


def write_order(pool: PagePool, pages: torch.Tensor, head: int, round_: int, order: torch.Tensor) -> None:
    """Writes one head's and round's order, int32 [n], to the pages of a layer, int64 [pages]."""
    layout = pool.layout
    for page, part in zip(pages.tolist(), order.split(layout.slots), strict=True):
        start = page * (layout.page_bytes // 4) + (head * layout.rounds + round_) * layout.slots
        pool.entries[start : start + len(part)] = part


def bucket_offsets(buckets: torch.Tensor, total_buckets: int) -> torch.Tensor:
    """Tokens with a smaller bucket: int64 [n] -> int32 [K + 1]."""
    counts = torch.bincount(buckets, minlength=total_buckets)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
