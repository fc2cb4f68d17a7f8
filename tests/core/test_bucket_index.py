"""The bucket index alone, on random buckets: merged orders and windows, against one stable sort of everything."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_core.bucket_index import (
    ABSENT,
    EMPTY,
    NOWHERE,
    Base,
    Tail,
    Windows,
    bucket_offsets,
    merged_offsets,
    merged_positions,
    write_merged_page,
    write_order,
)
from reformer_core.config import ReformerConfig
from reformer_core.lsh_attention import sorted_order
from reformer_core.pages import PageLayout, PagePool
from tests.core.models import small_config
from tests.core.naive_session import lsh_window

HEADS, CAPACITY, PAGES = 2, 16, 256


class Index:
    """One row's base and tail, and beside them the buckets of all tokens, int64 [H, R, n]."""

    def __init__(self, config: ReformerConfig, buckets: torch.Tensor) -> None:
        self.config, self.buckets = config, buckets
        layout = PageLayout(config, torch.float32, page_tokens=4)
        self.pool = PagePool(layout, PAGES * layout.page_bytes, torch.device("cpu"))
        tokens = buckets.shape[-1]
        pages = self._new_pages(tokens)
        for lane, of_lane in enumerate(buckets.flatten(0, 1)):
            write_order(self.pool, pages, lane, sorted_order(of_lane, tokens).to(torch.int32))
        offsets = [bucket_offsets(x, config.total_buckets) for x in buckets.flatten(0, 1)]
        self._set_base(torch.stack(offsets).view(HEADS, config.num_hashes, -1), tokens, pages)

    def append(self, buckets: torch.Tensor) -> torch.Tensor:
        """Tokens with buckets [H, R, m], one after the other -> the merged slot of the last one, [1, H, R]."""
        slot = torch.empty(0)
        for i in range(buckets.shape[-1]):
            slot = self.tail.append(self.base, buckets[None, ..., i], torch.tensor([self.tail_tokens]))
            self.buckets = torch.cat([self.buckets, buckets[..., i : i + 1]], dim=-1)
        return slot

    def append_at_once(self, buckets: torch.Tensor) -> tuple[Tail, torch.Tensor]:
        """Tokens with buckets [H, R, m] -> the tail as each of them sees it, and their merged slots, [m, H, R]."""
        m = buckets.shape[-1]
        base = replace(self.base, rows=self.base.rows.expand(m), tokens=self.base.tokens.expand(m))
        place = self.tail_tokens + torch.arange(m)
        found = self.tail.append_one_by_one(base, buckets.permute(2, 0, 1), place)
        self.buckets = torch.cat([self.buckets, buckets], dim=-1)
        return found

    @property
    def tail_tokens(self) -> int:
        return self.buckets.shape[-1] - int(self.base.tokens)

    def merge(self) -> None:
        tokens = self.buckets.shape[-1]
        pages, offsets = self._new_pages(tokens), merged_offsets(self.base, self.tail)
        for number, page in enumerate(pages.tolist()):
            write_merged_page(self.pool, self.base, self.tail, page, number * self.pool.layout.slots)
        old = self.pages
        self._set_base(offsets, tokens, pages)
        self.pool.release(old.tolist())

    def fork(self) -> "Index":
        """A second index on the same base: it must not see what happens to this one."""
        other = object.__new__(Index)
        other.config, other.pool, other.buckets = self.config, self.pool, self.buckets
        tokens = int(self.base.tokens)
        pages = self._new_pages(tokens)
        words = self.pool.entries.view(self.pool.total_pages, -1)
        words[pages] = words[self.pages]
        other._set_base(self.base.offsets[0], tokens, pages)
        other.tail = Tail(self.tail.buckets.clone(), self.tail.slots.clone())
        return other

    def check(self) -> None:
        """The merged order is that of one stable sort; the parts say what they should."""
        tokens, rounds = self.buckets.shape[-1], self.config.num_hashes
        lanes = torch.arange(HEADS * rounds).unsqueeze(0)
        merged = merged_positions(self.pool, self.base, self.tail, lanes, torch.zeros_like(lanes), tokens + 2)[0]
        expected = torch.sort(self.buckets, dim=-1, stable=True).indices
        torch.testing.assert_close(merged[:, :tokens].view_as(expected), expected, rtol=0, atol=0)
        assert (merged[:, tokens:] == ABSENT).all()
        assert (self.tail.buckets[..., self.tail_tokens :] == EMPTY).all()
        assert (self.tail.slots[..., self.tail_tokens :] >= NOWHERE).all()
        self.pool.check(self.pool_pages())

    def pool_pages(self) -> list[int]:
        free = set(self.pool._free)
        return [page for page in range(self.pool.total_pages) if page not in free]

    def _new_pages(self, tokens: int) -> torch.Tensor:
        return torch.tensor(self.pool.allocate(self.pool.layout.order_pages(tokens)))

    def _set_base(self, offsets: torch.Tensor, tokens: int, pages: torch.Tensor) -> None:
        self.pages = pages
        order_bases = self.pool.layout.order_bases(pages)
        self.base = Base(torch.tensor([0]), torch.tensor([tokens]), offsets[None], order_bases[None])
        empty = torch.full((1, HEADS, self.config.num_hashes, CAPACITY), EMPTY, dtype=torch.int32)
        self.tail = Tail(empty, torch.full_like(empty, NOWHERE))


def config(rounds: int = 2, buckets: int = 6, length: int = 4, before: int = 1, **changes: Any) -> ReformerConfig:
    return small_config(
        num_attention_heads=HEADS,
        attention_head_size=4,
        num_hashes=rounds,
        num_buckets=buckets,
        lsh_attn_chunk_length=length,
        lsh_num_chunks_before=before,
        **{"attn_layers": ("lsh",), **changes},
    )


def random_buckets(config: ReformerConfig, tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (HEADS, config.num_hashes, tokens)
    # Some buckets often, some hardly ever.
    return (torch.rand(shape, generator=generator) ** 2 * config.total_buckets).long()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 4)),
        st.tuples(st.just("append at once"), st.integers(1, CAPACITY)),
        st.tuples(st.just("merge"), st.just(0)),
        st.tuples(st.just("fork"), st.just(0)),
    ),
    max_size=8,
)


@given(st.integers(1, 40), st.integers(1, 4), st.sampled_from([2, 6, 30]), STEPS, st.integers(0, 2**32))
@settings(max_examples=150)
def test_any_interleaving_gives_the_order_of_one_stable_sort(
    tokens: int, rounds: int, buckets: int, steps: list[tuple[str, int]], seed: int
) -> None:
    settings_ = config(rounds, buckets)
    index = Index(settings_, random_buckets(settings_, tokens, seed))
    index.check()
    left_behind = []
    for number, (step, count) in enumerate(steps):
        if step.startswith("append"):
            if index.tail_tokens + count > CAPACITY:
                index.merge()
            more = random_buckets(settings_, count, seed + 1 + number)
            (index.append if step == "append" else index.append_at_once)(more)
        elif step == "merge":
            index.merge()
        else:
            left_behind.append(index)
            index = index.fork()
        index.check()
    for other in left_behind:
        other.check()


@given(
    st.integers(1, 40),
    st.integers(1, CAPACITY - 1),
    st.integers(1, 4),
    st.sampled_from([2, 3, 4, 8]),
    st.integers(0, 2),
    st.sampled_from([None, 2, 6, 16]),
    st.integers(0, 2**32),
)
@settings(max_examples=300)
def test_the_window_is_that_of_a_full_sort(
    tokens: int, appended: int, rounds: int, length: int, before: int, local_length: int | None, seed: int
) -> None:
    layers = ("lsh",) if local_length is None else ("local", "lsh")
    settings_ = config(
        rounds, length=length, before=before, attn_layers=layers, local_attn_chunk_length=local_length or 4
    )
    index = Index(settings_, random_buckets(settings_, tokens, seed))
    slot = index.append(random_buckets(settings_, appended, seed + 1))
    windows = Windows(settings_, torch.tensor([tokens + appended]))
    seen = windows.positions(index.pool, index.base, index.tail, slot)[0]
    for head in range(HEADS):
        check_seen(seen[head], index.buckets[head], settings_)


@given(st.integers(1, 30), st.integers(0, 6), st.integers(1, 10), st.integers(1, 3), st.integers(0, 2**32))
@settings(max_examples=100)
def test_many_tokens_at_once_are_as_many_single_ones(
    tokens: int, tail: int, count: int, rounds: int, seed: int
) -> None:
    settings_ = config(rounds)
    first = random_buckets(settings_, tokens, seed)
    one_by_one, at_once = Index(settings_, first), Index(settings_, first)
    in_tail, more = random_buckets(settings_, tail, seed + 1), random_buckets(settings_, count, seed + 2)
    one_by_one.append(in_tail)
    at_once.append(in_tail)
    tails, slots = at_once.append_at_once(more)
    for i in range(count):
        slot = one_by_one.append(more[..., i : i + 1])
        assert torch.equal(slot[0], slots[i])
        filled = slice(0, tail + i + 1)
        assert torch.equal(one_by_one.tail.buckets[0, ..., filled], tails.buckets[i, ..., filled])
        assert torch.equal(one_by_one.tail.slots[0, ..., filled], tails.slots[i, ..., filled])
        assert (tails.slots[i, ..., tail + i + 1 :] >= NOWHERE).all()
    at_once.check()


def test_rows_of_one_batch_do_not_touch_each_other() -> None:
    settings_ = config(rounds=3)
    indices = [Index(settings_, random_buckets(settings_, tokens, tokens)) for tokens in (3, 17, 30)]
    pool = indices[0].pool
    width = max(len(index.pages) for index in indices)
    order_bases = torch.zeros(len(indices), width, dtype=torch.long)
    for row, index in enumerate(indices):  # all bases into one pool
        target = index.pages if index.pool is pool else torch.tensor(pool.allocate(len(index.pages)))
        pool.entries.view(PAGES, -1)[target] = index.pool.entries.view(PAGES, -1)[index.pages]
        order_bases[row, : len(target)] = pool.layout.order_bases(target)
    sessions = torch.tensor([2, 0, 1])  # the rows of the tables in which the three are
    offsets = torch.cat([index.base.offsets for index in indices])
    base = Base(
        sessions,
        torch.cat([index.base.tokens for index in indices]),
        torch.empty_like(offsets).index_copy_(0, sessions, offsets),
        torch.empty_like(order_bases).index_copy_(0, sessions, order_bases),
    )
    tail = Tail(*(torch.cat([getattr(index.tail, name) for index in indices]) for name in ("buckets", "slots")))
    positions = torch.tensor([index.buckets.shape[-1] for index in indices])
    for step in range(6):
        new = torch.stack([random_buckets(settings_, 1, 100 * step + row)[..., 0] for row in range(len(indices))])
        slot = tail.append(base, new, positions - base.tokens)
        positions = positions + 1
        seen = Windows(settings_, positions).positions(pool, base, tail, slot)
        for row, index in enumerate(indices):
            index.append(new[row].unsqueeze(-1))
            for head in range(HEADS):
                check_seen(seen[row, head], index.buckets[head], settings_)


def test_all_tokens_in_one_bucket() -> None:
    settings_ = config(rounds=2, buckets=2)
    index = Index(settings_, torch.ones(HEADS, 2, 21, dtype=torch.long))
    index.append(torch.ones(HEADS, 2, 5, dtype=torch.long))
    index.merge()
    index.append_at_once(torch.zeros(HEADS, 2, CAPACITY, dtype=torch.long))
    index.check()


@pytest.mark.parametrize("buckets", [2**15, 2**20])
def test_buckets_without_a_token(buckets: int) -> None:
    settings_ = config(rounds=1, buckets=buckets)
    index = Index(settings_, torch.tensor([[[0, buckets - 1, 7]], [[buckets - 1, buckets - 1, 0]]]))
    index.append(torch.tensor([[[buckets - 1, 0, 6]], [[0, 5, buckets - 1]]]))
    index.check()
    index.merge()
    index.check()


def check_seen(positions: torch.Tensor, buckets: torch.Tensor, config: ReformerConfig) -> None:
    """What the newest token sees, with repetitions; where there is nothing it is said to see itself."""
    newest = buckets.shape[-1] - 1
    expected = sorted(lsh_window(buckets.numpy(), config))
    assert len(positions) == config.num_hashes * config.lsh_window
    assert [x for x in sorted(positions.tolist()) if x != newest] == [x for x in expected if x != newest]
    assert newest in positions
