"""Peers do what they are compared in: transformers' cache is the one it would have made, full attention's is exact."""

from pathlib import Path

import pytest
import torch

from benchmarks.peers import (
    full_attention_step,
    load_transformers,
    transformers_cache,
    transformers_step,
)
from benchmarks.transformer_peer import KeyValueCache, Peer, PeerConfig
from reformer_core import ReformerModel, save_model
from tests.core.models import clear_tokens
from tests.core.tiny import tiny_model

TOKENS = 64  # a multiple of the chunk lengths, and several chunks of both kinds


@pytest.fixture(scope="module")
def model() -> ReformerModel:
    return tiny_model()


@pytest.fixture
def directory(model: ReformerModel, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def test_our_layers_give_the_cache_that_transformers_would_make(model: ReformerModel, directory: Path) -> None:
    token_ids = clear_tokens(model, 1, TOKENS)
    theirs = load_transformers(directory, torch.float32)
    made = theirs(input_ids=token_ids, use_cache=True).past_buckets_states
    ours = transformers_cache(model, token_ids[0], torch.float32)
    assert len(ours) == len(made) == 2
    for (our_buckets, our_states), (their_buckets, their_states) in zip(ours, made, strict=True):
        assert torch.equal(our_buckets, their_buckets)
        torch.testing.assert_close(our_states, their_states, rtol=1e-4, atol=1e-4)


def test_transformers_decodes_from_it(model: ReformerModel, directory: Path) -> None:
    token_ids = clear_tokens(model, 1, TOKENS + 2)[0]
    theirs = load_transformers(directory, torch.float32)
    made = theirs(input_ids=token_ids[None, :TOKENS], use_cache=True).past_buckets_states
    ours = transformers_cache(model, token_ids[:TOKENS], torch.float32)
    steps = [transformers_step(theirs, cache) for cache in (made, ours)]
    for token_id in token_ids[TOKENS:].tolist():
        expected, found = (step(token_id) for step in steps)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_its_weights_have_the_dtype_that_was_asked_for(directory: Path) -> None:
    theirs = load_transformers(directory, torch.bfloat16)
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}


def test_full_attention_decodes_with_its_cache_as_without() -> None:
    torch.manual_seed(0)
    peer = Peer(PeerConfig(32, 2, 16, 2, 32, 16))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    token_ids = torch.randint(32, (12,))
    cache = KeyValueCache(peer.config, 16)
    with torch.inference_mode():
        expected = peer(token_ids[None])[0]
        torch.testing.assert_close(peer(token_ids[None, :8], cache)[0], expected[:8])
    step = full_attention_step(peer, cache)
    for place in range(8, 12):
        torch.testing.assert_close(step(int(token_ids[place])), expected[place])
    assert cache.tokens == 12


def test_a_filled_cache_is_as_large_as_a_real_one() -> None:
    config = PeerConfig(32, 2, 16, 2, 32, 64)
    cache = KeyValueCache(config, 64)
    cache.fill(50)
    keys, values = cache.append(1, torch.zeros(1, 2, 1, 8), torch.ones(1, 2, 1, 8))
    assert keys.shape == values.shape == (1, 2, 51, 8)
    assert keys[..., :50, :].std() == pytest.approx(1, abs=0.1)
    assert not keys[..., 50, :].any()
    assert values[..., 50, :].eq(1).all()
