"""Small models with a pool and a table, and the usual steps on sessions, for the tests of documents and sessions."""

from typing import Any

import torch

from reformer_core.document import Document
from reformer_core.extend import extend
from reformer_core.incremental import decode_step, tail_capacity_for
from reformer_core.model import ReformerModel
from reformer_core.pages import PageLayout, PagePool
from reformer_core.prefill import Prefill
from reformer_core.session import Session
from reformer_core.session_table import SessionTable
from tests.core.models import random_model, small_config

PAGE_TOKENS = 16
TAIL_TOKENS = 32


def tiny_model(dtype: torch.dtype = torch.float32, **config: Any) -> ReformerModel:
    """A random model whose logits have a standard deviation of about 1, so that a difference of 1e-5 is meaningful."""
    model = random_model(small_config(**config))
    with torch.no_grad():
        model.head.weight *= 0.5
    return model.to(dtype).requires_grad_(False)


def random_tokens(model: ReformerModel, count: int, seed: int = 1) -> torch.Tensor:
    """Random ids, int64 [count]."""
    return torch.randint(model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def tiny_pool(model: ReformerModel, pages: int = 1024, page_tokens: int = PAGE_TOKENS) -> PagePool:
    """A pool of small pages, so that there are many of them."""
    layout = PageLayout(model.config, model.dtype, page_tokens)
    return PagePool(layout, pages * layout.page_bytes, model.device)


def read_document(model: ReformerModel, pool: PagePool, token_ids: torch.Tensor) -> Document:
    """A document with scores, read in one go."""
    prefill = Prefill(model, pool, token_ids, keep_document=True, keep_scores=True)
    for _ in prefill.slices():
        pass
    assert prefill.document is not None
    return prefill.document


def open_session(model: ReformerModel, token_ids: torch.Tensor, sessions: int = 4, **pool: int) -> Session:
    """A session on a document of its own, in a pool and a table of its own, its tail small, so that it is merged."""
    document = read_document(model, tiny_pool(model, **pool), token_ids)
    session = Session(SessionTable(model.config, document.pool, sessions, TAIL_TOKENS), document)
    document.close()  # lives as long as its sessions
    return session


def decode(model: ReformerModel, sessions: list[Session], token_ids: torch.Tensor) -> torch.Tensor:
    """One token for each session, int64 [B], tails merged where they are full -> logits of the next, [B, vocab]."""
    table = sessions[0].table
    for session in sessions:
        session.reserve(1)
        if session.tail_tokens == table.tail_capacity:
            session.merge_tail()
    capacity = tail_capacity_for(max(session.tail_tokens for session in sessions) + 1, table.tail_capacity)
    table.arrange(sessions)
    rows = torch.tensor([session.row for session in sessions])
    decode_step(model, table, token_ids[rows.argsort()], capacity)
    for session in sessions:
        session.appended(1)
    return table.next_logits[rows]


def append(model: ReformerModel, session: Session, token_ids: torch.Tensor, together: int = 1) -> torch.Tensor:
    """Tokens int64 [m], so many together; one at a time is decoding -> logits of the token after each, [m, vocab]."""
    if together == 1:
        return torch.cat([decode(model, [session], token_id) for token_id in token_ids.split(1)])
    return torch.cat([logits for part in token_ids.split(together) for logits in extend(model, session, part)])


def last_rows(model: ReformerModel, token_ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """The definition: the last row of a full pass over each prefix of more than so many tokens, [m, vocab]."""
    ends = range(tokens + 1, len(token_ids) + 1)
    return torch.stack([model(token_ids[:end])[-1] for end in ends])
