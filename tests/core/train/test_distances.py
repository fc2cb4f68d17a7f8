"""Models whose local heads tell distances: what they compute, what training keeps of it, and the way back."""

import dataclasses
from typing import Any

import pytest
import torch

from reformer_core import ReformerModel
from reformer_core.local_attention import LocalAttention
from reformer_core.train.configurations import text_config
from reformer_core.train.distances import plain_copy
from reformer_core.train.initial_text import initialise_text
from reformer_core.train.optimizer import build_optimizers
from reformer_core.train.settings import OptimizerSettings
from reformer_core.train.trainer import with_hyperparameters

TOKENS = 200
BEFORE_THE_END = 1024 - TOKENS // 2  # of the table, which begins again after 1,024 tokens


def model_of_distances(**changes: Any) -> ReformerModel:
    torch.manual_seed(0)
    model = ReformerModel(dataclasses.replace(text_config(300), **changes))
    initialise_text(model)
    return model


def train(model: ReformerModel, steps: int = 3) -> None:
    optimizers = build_optimizers(model, OptimizerSettings(learning_rate=1e-2, kind="muon"))
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        token_ids = torch.randint(300, (2, TOKENS + 1), generator=generator)
        loss = model.loss(token_ids[:, :-1], token_ids[:, 1:], torch.tensor([0, 700]))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_logits_of_like_tokens_depend_on_the_distance() -> None:
    """Also where the table of positions begins again. A layer norm's mean, which waves have a part in, blurs it."""
    model = model_of_distances().requires_grad_(False)
    stream1 = stream2 = model.embed(torch.full((1, TOKENS), 7), BEFORE_THE_END + torch.arange(TOKENS))
    for layer in model.reversible_layers[:2]:
        assert isinstance(layer.attention, LocalAttention)
        query, key, _ = layer.attention.project(stream2)
        logits = (query @ key.transpose(-1, -2))[0, 0]  # of the head that looks one token back
        of_distances = [logits.diagonal(-distance) for distance in (0, 1, 2, 5, 60)]
        assert all(x.std() < 1 for x in of_distances)
        means = [float(x.mean()) for x in of_distances]
        assert means[1] > 3 + max(means[0], *means[2:])
        # The next layer's input, as if all tokens' contents were mixed alike.
        stream1 = stream1 + layer.attention(stream2).mean(dim=1, keepdim=True)
        stream2 = stream2 + layer.feed_forward(stream1).mean(dim=1, keepdim=True)


def test_nothing_is_added_to_the_waves() -> None:
    model = model_of_distances()
    channels = (
        model.config.hidden_size
        - model.reversible_layers[0].feed_forward.outer.get_parameter("parametrizations.bias.original").numel()
    )
    assert channels == 16
    train(model)
    stream1 = stream2 = embedded = model.embed(torch.arange(TOKENS).unsqueeze(0), torch.arange(TOKENS))
    for layer in model.reversible_layers:
        stream1 = stream1 + layer.attention(stream2)
        stream2 = stream2 + layer.feed_forward(stream1)
    for stream in (stream1, stream2):
        assert torch.equal(stream[..., -channels:], embedded[..., -channels:])
        assert not torch.equal(stream[..., :-channels], embedded[..., :-channels])


def test_a_plain_copy_is_the_same_model() -> None:
    model = model_of_distances()
    train(model)
    state = torch.get_rng_state()
    plain = plain_copy(model)
    assert torch.equal(torch.get_rng_state(), state)
    expected = ReformerModel(model.config).state_dict()
    assert {name: x.shape for name, x in plain.state_dict().items()} == {name: x.shape for name, x in expected.items()}
    token_ids = torch.arange(TOKENS).unsqueeze(0)
    before = model(token_ids)
    assert torch.equal(plain(token_ids), before)
    train(model)
    assert not torch.equal(model(token_ids), before)
    assert torch.equal(plain(token_ids), before)


def test_amplitudes_are_learned_by_adamw_and_positions_not_at_all() -> None:
    model = model_of_distances()
    positions = [x.clone() for x in model.embeddings.positions.parameters()]
    attention = model.reversible_layers[0].attention
    assert isinstance(attention, LocalAttention)
    amplitudes = attention.query.get_parameter("parametrizations.weight.original1")
    adamw, muon = build_optimizers(model, OptimizerSettings(kind="muon"))
    [decay] = [group["weight_decay"] for group in adamw.param_groups if any(x is amplitudes for x in group["params"])]
    assert decay == 0
    contents = attention.query.get_parameter("parametrizations.weight.original0")
    assert any(x is contents for group in muon.param_groups for x in group["params"])
    before = amplitudes.detach().clone()
    train(model)
    assert not torch.equal(amplitudes, before)
    assert all(map(torch.equal, positions, model.embeddings.positions.parameters()))


def test_other_hyperparameters_share_the_parameters() -> None:
    model = model_of_distances()
    other = with_hyperparameters(model, {"num_hashes": 1, "lsh_attn_chunk_length": 64})
    assert {id(x) for x in other.parameters()} == {id(x) for x in model.parameters()}
    assert not any(x.requires_grad for x in model.embeddings.positions.parameters())
    train(other)
    token_ids = torch.arange(TOKENS).unsqueeze(0)
    again = with_hyperparameters(other, {"num_hashes": 2, "lsh_attn_chunk_length": 128})
    assert torch.equal(again(token_ids), model(token_ids))


@pytest.mark.parametrize(
    "changes", [{"feed_forward_size": 99}, {"attention_head_size": 24}, {"attn_layers": ("local", "lsh")}]
)
def test_hyperparameters_of_other_weights_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} can't be changed for weights that are there: layers"):
        with_hyperparameters(model_of_distances(), changes)


def test_weights_are_frozen_by_their_own_names() -> None:
    model = model_of_distances()
    build_optimizers(model, OptimizerSettings(freeze=("layers.0.attention.query.weight", "layers.1.feed_forward")))
    layers = model.reversible_layers
    assert not any(x.requires_grad for x in layers[0].attention.query.parameters())
    assert not any(x.requires_grad for x in layers[1].feed_forward.parameters())
    assert all(x.requires_grad for x in layers[0].attention.key.parameters())
    with pytest.raises(ValueError, match=r"there are .*layers.0.attention.query, "):
        build_optimizers(model, OptimizerSettings(freeze=("layers.0.attention.query.bias",)))


def test_gradients_are_the_same_whatever_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a reversible backward pass, which projects some tokens at a time, and of autograd's."""
    found = []
    for most in (0, 1 << 40):
        monkeypatch.setattr("reformer_core.reversible.KEPT_BYTES", most)
        model = model_of_distances().double()
        token_ids = torch.arange(TOKENS + 1).unsqueeze(0)
        model.loss(token_ids[:, :-1], token_ids[:, 1:], torch.zeros(1, dtype=torch.long)).backward()
        found.append([x.grad for x in model.parameters() if x.grad is not None])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
