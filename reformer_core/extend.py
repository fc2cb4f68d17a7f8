"""Appending many tokens to a session, slice by slice, merging its tail when that is full."""

from collections.abc import Iterator

import torch

from reformer_core.errors import TooManyTokensError
from reformer_core.incremental import extend_slice
from reformer_core.model import ReformerModel
from reformer_core.session import Session
from reformer_core.slicing import extend_tokens


def extend(model: ReformerModel, session: Session, token_ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """Appends tokens int [m], checked already, to a session.

    Yields:
        a slice's logits, float32 [k, vocab]: of the token after each; of none after a slice of merging the tail.

    Raises:
        TooManyTokensError: there aren't so many positions left; nothing is appended.
        OutOfMemoryError: there aren't enough pages; what was yielded is appended.
    """
    if session.length + len(token_ids) > model.config.max_tokens:
        raise TooManyTokensError(session.length + len(token_ids), model.config.max_tokens)
    token_ids = token_ids.long().to(model.device)
    nothing = torch.empty(0, model.config.vocab_size, device=model.device)
    slice_tokens, done = extend_tokens(model.config, model.device), 0
    while done < len(token_ids):
        if session.tail_is_full:
            for _ in session.merge_slices():
                yield nothing
        room = session.table.tail_capacity - session.tail_tokens
        part = token_ids[done : done + min(slice_tokens, room)]
        session.reserve(len(part))
        yield extend_slice(model, session, part)
        done += len(part)
