"""The page pool: no page is lost, none is held twice, whatever happens."""

import dataclasses

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from reformer_core.document import Document
from reformer_core.errors import OutOfMemoryError
from reformer_core.pages import PageLayout, PagePool
from reformer_core.prefill import Prefill
from reformer_core.session import Session
from reformer_core.session_table import SessionTable
from tests.core.models import small_config
from tests.core.tiny import append, random_tokens, read_document, tiny_model

TOTAL_PAGES, PAGE_TOKENS, SESSIONS, TAIL_TOKENS = 40, 8, 3, 16


class Pages(RuleBasedStateMachine):
    """Documents, sessions and others that take and give pages of a pool that is too small for all."""

    documents: Bundle[Document] = Bundle("documents")
    sessions: Bundle[Session] = Bundle("sessions")
    held: Bundle[list[int]] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model(attn_layers=("local", "lsh"), lsh_attn_chunk_length=4, local_attn_chunk_length=4)
        layout = PageLayout(self.model.config, torch.float32, PAGE_TOKENS)
        self.pool = PagePool(layout, TOTAL_PAGES * layout.page_bytes, torch.device("cpu"))
        self.table = SessionTable(self.model.config, self.pool, SESSIONS, TAIL_TOKENS)
        self.holders: list[Document | Session] = []
        self.lists: list[list[int]] = []

    @initialize(target=documents)
    def begin(self) -> Document:
        self.holders.append(read_document(self.model, self.pool, random_tokens(self.model, 20)))
        return self.holders[-1]

    @rule(target=held, count=st.integers(0, 15))
    def allocate(self, count: int) -> object:
        free = self.pool.free_pages
        if count > free:
            with pytest.raises(OutOfMemoryError) as caught:
                self.pool.allocate(count)
            assert caught.value.free_bytes == free * self.pool.layout.page_bytes
            return multiple()
        self.lists.append(self.pool.allocate(count))
        return self.lists[-1]

    @rule(pages=consumes(held))
    def release(self, pages: list[int]) -> None:
        self.lists = [x for x in self.lists if x is not pages]
        self.pool.release(pages)

    @rule(target=documents, tokens=st.integers(1, 40))
    def read(self, tokens: int) -> object:
        try:
            document = read_document(self.model, self.pool, random_tokens(self.model, tokens))
        except OutOfMemoryError:
            return multiple()
        self.holders.append(document)
        return document

    @rule(tokens=st.integers(1, 40), slices=st.integers(0, 30), keep=st.booleans())
    def break_off_reading(self, tokens: int, slices: int, keep: bool) -> None:
        token_ids = random_tokens(self.model, tokens)
        try:
            prefill = Prefill(self.model, self.pool, token_ids, keep_document=keep, keep_scores=not keep)
        except OutOfMemoryError:
            return
        for _, _ in zip(range(slices), prefill.slices(), strict=False):
            pass
        prefill.close()
        if prefill.document is not None:
            prefill.document.close()

    @rule(document=documents)
    def close_document(self, document: Document) -> None:
        document.close()

    @rule(target=sessions, document=documents)
    def open(self, document: Document) -> object:
        try:
            session = Session(self.table, document)
        except (OutOfMemoryError, ValueError):
            assert document.freed or self.table.free_rows == 0
            return multiple()
        self.holders.append(session)
        return session

    @rule(session=sessions, tokens=st.integers(1, 30), together=st.integers(1, 30))
    def append(self, session: Session, tokens: int, together: int) -> None:
        if not session.closed:
            try:
                append(self.model, session, random_tokens(self.model, tokens), together)
            except OutOfMemoryError:
                assert self.pool.free_pages < TOTAL_PAGES

    @rule(session=sessions, slices=st.integers(0, 4))
    def merge(self, session: Session, slices: int) -> None:
        """To its end, or not."""
        if not session.closed:
            try:
                for _, _ in zip(range(slices), session.merge_slices(), strict=False):
                    pass
            except OutOfMemoryError:
                pass

    @rule(session=sessions)
    def rewind(self, session: Session) -> None:
        if not session.closed:
            session.rewind()

    @rule(target=sessions, session=sessions)
    def fork(self, session: Session) -> object:
        if session.closed:
            return multiple()
        try:
            self.holders.append(session.fork())
        except OutOfMemoryError:
            return multiple()
        return self.holders[-1]

    @rule(session=sessions)
    def close_session(self, session: Session) -> None:
        session.close()

    @invariant()
    def every_page_is_free_or_held_once(self) -> None:
        held = [page for pages in self.lists for page in pages]
        for holder in self.holders:
            if not (holder.freed if isinstance(holder, Document) else holder.closed):
                held += holder.pages
        self.pool.check(held)
        assert self.pool.used_pages == len(held)
        in_use = sum(1 for holder in self.holders if isinstance(holder, Session) and not holder.closed)
        assert self.table.free_rows == SESSIONS - in_use

    def teardown(self) -> None:
        for holder in reversed(self.holders):
            holder.close()
        for pages in self.lists:
            self.pool.release(pages)
        self.pool.check([])


Pages.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestPages = Pages.TestCase


def test_the_check_finds_lost_and_doubled_pages() -> None:
    layout = PageLayout(small_config(), torch.float32, PAGE_TOKENS)
    pool = PagePool(layout, 4 * layout.page_bytes, torch.device("cpu"))
    pages = pool.allocate(2)
    pool.check(pages)
    for wrong in ([], pages[:1], [*pages, pages[0]]):
        with pytest.raises(AssertionError):
            pool.check(wrong)


def test_a_pool_takes_as_many_whole_pages_as_fit() -> None:
    layout = PageLayout(small_config(), torch.float32, PAGE_TOKENS)
    for memory, expected in ((0, 1), (layout.page_bytes - 1, 1), (7 * layout.page_bytes - 1, 6)):
        pool = PagePool(layout, memory, torch.device("cpu"))
        assert pool.total_pages == expected
        assert pool.nbytes == expected * layout.page_bytes
        with pytest.raises(OutOfMemoryError):
            pool.allocate(expected + 1)
        assert len(pool.allocate(expected)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "head_size", "rounds", "page_tokens"), [(2, 16, 2, 16), (3, 5, 4, 8), (1, 1, 2, 8)])
def test_every_address_of_a_page_is_within_it_and_its_own(
    dtype: torch.dtype, heads: int, head_size: int, rounds: int, page_tokens: int
) -> None:
    config = dataclasses.replace(
        small_config(), num_attention_heads=heads, attention_head_size=head_size, num_hashes=rounds
    )
    layout = PageLayout(config, dtype, page_tokens)
    pool = PagePool(layout, 3 * layout.page_bytes, torch.device("cpu"))
    pages, head = torch.tensor([0, 2]), torch.arange(heads).view(-1, 1)  # an owner's second page is the pool's third
    second = torch.arange(page_tokens, 2 * page_tokens)
    keys = layout.key_row(layout.key_bases(pages)[second >> layout.token_bits], head, second).flatten()
    rows = torch.cat([keys, keys + layout.value_distance])
    assert rows.sort().values.tolist() == list(range(2 * len(pool.rows) // 3, len(pool.rows)))
    second, lanes = torch.arange(layout.slots, 2 * layout.slots), torch.arange(heads * rounds).view(-1, 1)
    entries = layout.order_entry(layout.order_bases(pages)[second >> layout.slot_bits], lanes, second)
    assert len(entries.unique()) == entries.numel()
    assert int(entries.min()) == 2 * len(pool.entries) // 3
    assert int(entries.max()) < len(pool.entries)


def test_a_page_of_an_odd_size() -> None:
    with pytest.raises(ValueError, match="a power of two, but are 7"):
        PageLayout(small_config(), torch.float32, 7)


def test_pages_too_small_for_one_slot_of_all_rounds() -> None:
    config = small_config(num_hashes=9, attention_head_size=1)
    with pytest.raises(ValueError, match="can't hold the order of 9 hash rounds"):
        PageLayout(config, torch.float32, 4)
