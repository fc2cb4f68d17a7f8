"""Documents: shared, immutable, freed with their last user."""

import pytest
import torch

from reformer_core.session import Session
from reformer_core.session_table import SessionTable
from tests.core.tiny import TAIL_TOKENS, append, random_tokens, read_document, tiny_model, tiny_pool


def test_pages_live_as_long_as_the_last_user() -> None:
    model = tiny_model()
    pool = tiny_pool(model)
    document = read_document(model, pool, random_tokens(model, 50))
    table = SessionTable(model.config, pool, 2, TAIL_TOKENS)
    first, second = Session(table, document), Session(table, document)
    document.close()
    document.close()
    assert document.closed
    assert not document.freed
    first.close()
    pool.check([*document.pages, *second.pages])
    second.close()
    second.close()
    assert document.freed
    pool.check([])
    with pytest.raises(ValueError, match="freed"):
        document.acquire()
    with pytest.raises(ValueError, match="freed"):
        Session(table, document)
    assert table.free_rows == 2
    pool.check([])


def test_sessions_never_write_to_it() -> None:
    """Its bytes in the arena, the last page that isn't full included, are the same after decoding and merging."""
    model = tiny_model()
    pool = tiny_pool(model)
    document = read_document(model, pool, random_tokens(model, 50))
    words = pool.entries.view(pool.total_pages, -1)
    before = words[document.pages]
    table = SessionTable(model.config, pool, 3, TAIL_TOKENS)
    for together in (1, 13):
        with Session(table, document) as session:
            append(model, session, random_tokens(model, 3 * TAIL_TOKENS), together)
            assert session.base_tokens > document.tokens  # it was merged
            append(model, session.fork(), random_tokens(model, TAIL_TOKENS), together)
    assert torch.equal(words[document.pages], before)


def test_it_knows_its_size() -> None:
    model = tiny_model()
    pool = tiny_pool(model)
    document = read_document(model, pool, random_tokens(model, 50))
    assert document.tokens == 50
    assert document.page_count == len(document.pages) == pool.used_pages
    assert document.scores is not None
    host_bytes = document.token_ids.nbytes + document.scores.nbytes
    assert document.nbytes == pool.used_pages * pool.layout.page_bytes + host_bytes
