"""Appending many tokens: in slices, with merges in between."""

import pytest
import torch

from reformer_core.errors import OutOfMemoryError, TooManyTokensError
from reformer_core.extend import extend
from reformer_core.slicing import extend_tokens, slice_bounds
from tests.core.models import small_config
from tests.core.tiny import TAIL_TOKENS, append, last_rows, open_session, random_tokens, tiny_model


@pytest.mark.parametrize("slice_tokens", [1, 5, 31, 32, 100])
def test_slices_of_any_length_say_the_same(monkeypatch: pytest.MonkeyPatch, slice_tokens: int) -> None:
    monkeypatch.setattr("reformer_core.extend.extend_tokens", lambda *_: slice_tokens)
    model = tiny_model(attn_layers=("lsh",))
    token_ids = random_tokens(model, 150)
    session = open_session(model, token_ids[:41])
    slices = list(extend(model, session, token_ids[41:]))
    assert max(map(len, slices)) == min(slice_tokens, TAIL_TOKENS)
    assert session.length == 150
    torch.testing.assert_close(torch.cat(slices), last_rows(model, token_ids, 41), rtol=0, atol=1e-5)


def test_a_merge_is_slices_without_tokens() -> None:
    model = tiny_model()
    session = open_session(model, random_tokens(model, 300))
    lengths = [len(logits) for logits in extend(model, session, random_tokens(model, TAIL_TOKENS + 1))]
    pages = session.table.pool.layout.order_pages(session.document.tokens + TAIL_TOKENS)
    assert lengths == [TAIL_TOKENS, *([0] * pages), 1]


def test_nothing_is_appended_beyond_the_positions() -> None:
    model = tiny_model(axial_pos_shape=(4, 16))
    session = open_session(model, random_tokens(model, 60))
    with pytest.raises(TooManyTokensError) as caught:
        next(extend(model, session, random_tokens(model, 5)))
    assert (caught.value.tokens, caught.value.max_tokens, session.length) == (65, 64, 60)
    assert len(append(model, session, random_tokens(model, 4), together=4)) == 4


def test_what_was_yielded_is_appended() -> None:
    model = tiny_model(attn_layers=("lsh",))
    token_ids = random_tokens(model, 200)
    session = open_session(model, token_ids[:50])
    pool = session.table.pool
    spare = pool.allocate(pool.free_pages)
    pool.release([spare.pop() for _ in range(2)])
    done = 0
    with pytest.raises(OutOfMemoryError):  # noqa: PT012 -- the loop is what is tested
        for logits in extend(model, session, token_ids[50:]):
            done += len(logits)
    assert session.length == 50 + done
    pool.release(spare)
    rest = torch.cat(list(extend(model, session, token_ids[50 + done :])))
    torch.testing.assert_close(rest[-1], model(token_ids)[-1], rtol=0, atol=1e-5)


def test_no_tokens() -> None:
    model = tiny_model()
    assert list(extend(model, open_session(model, random_tokens(model, 10)), torch.empty(0, dtype=torch.long))) == []


@pytest.mark.parametrize(("device", "chunk"), [("cpu", 160), ("cuda", 32)])
def test_slices_are_shorter_where_windows_are_large(device: str, chunk: int) -> None:
    place = torch.device(device)
    bounds = slice_bounds(place)
    assert extend_tokens(small_config(), place) == bounds.most_extend_tokens
    huge = small_config(num_attention_heads=16, attention_head_size=128, num_hashes=8, lsh_attn_chunk_length=1024)
    assert extend_tokens(huge, place) == bounds.least_extend_tokens
    large = small_config(num_attention_heads=8, attention_head_size=128, num_hashes=4, lsh_attn_chunk_length=chunk)
    assert bounds.least_extend_tokens < extend_tokens(large, place) < bounds.most_extend_tokens
