"""Where the heads of a text model look before it has learned anything."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from reformer_core import ReformerModel
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention, normalised_keys
from reformer_core.train.configurations import text_config
from reformer_core.train.distances import RECENT
from reformer_core.train.initial_text import LOOKS, initialise_text
from reformer_core.train.settings import OptimizerSettings

TOKENS = 512
START = 70_001  # far from the first position


def initial_model(**changes: Any) -> ReformerModel:
    torch.manual_seed(0)
    model = ReformerModel(dataclasses.replace(text_config(512), **changes))
    initialise_text(model)
    return model


@torch.no_grad()
def local_attention(model: ReformerModel, layer_index: int) -> torch.Tensor:
    """Causal attention weights of a local layer to random tokens, [H, n, n], without its window."""
    token_ids = torch.randint(model.config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    stream1 = stream2 = model.embed(token_ids, START + torch.arange(TOKENS))
    for layer in model.reversible_layers[:layer_index]:
        stream1 = stream1 + layer.attention(stream2)
        stream2 = stream2 + layer.feed_forward(stream1)
    attention = model.reversible_layers[layer_index].attention
    assert isinstance(attention, LocalAttention)
    query, key, _ = attention.project(stream2)
    future = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return (query @ key.transpose(-1, -2)).masked_fill(future, -math.inf).softmax(dim=-1)[0]


def mass(weights: torch.Tensor, steps: int) -> float:
    """Average attention of a head, [n, n], to `steps` before."""
    queries = torch.arange(TOKENS // 2, TOKENS)
    return float(weights[queries, queries - steps].mean())


@pytest.mark.parametrize("layer", [0, 1, 3, 5])
def test_heads_begin_where_they_are_told(layer: int) -> None:
    model = initial_model()
    for look, weights in zip(LOOKS[min(layer, 2)], local_attention(model, layer), strict=False):
        if look is RECENT:
            near, far = (mass(weights, steps) for steps in (1, 48))
            assert far < 0.8 * near
        else:
            assert mass(weights, look) > max(0.3, 2 * mass(weights, look + 1), 2 * mass(weights, look + 2))


def test_what_a_random_model_does_not() -> None:
    torch.manual_seed(0)
    weights = local_attention(ReformerModel(text_config(512)), 0)
    assert max(mass(head, steps) for head in weights for steps in (1, 2, 3, 4)) < 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"axial_pos_embds": False, "max_position_embeddings": 131_072},
        {"num_attention_heads": 1, "attention_head_size": 64},
        {"num_attention_heads": 8, "attention_head_size": 4},
        {"axial_pos_shape": (1024, 1024), "axial_pos_embds_dim": (248, 8)},
        {"attn_layers": ("lsh", "local", "lsh")},
    ],
    ids=["plain positions", "one head", "small heads", "narrow positions", "LSH first"],
)
def test_any_configuration_has_a_beginning(changes: dict[str, Any]) -> None:
    model = initial_model(**changes)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    local = model.config.attn_layers.index("local")
    weights = local_attention(model, local)[0]
    assert mass(weights, 1) > mass(weights, 2)


def test_tiny_heads_and_tables_keep_random_positions() -> None:
    for changes in ({"attention_head_size": 2}, {"axial_pos_embds_dim": (255, 1)}):
        model = initial_model(**changes)
        assert all(parameter.isfinite().all() and parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_noisy_steps_of_adamw_do_not_drown_the_positions() -> None:
    """They have the learning rate's size, whatever the gradients' is."""
    model = initial_model()
    optimizer = torch.optim.AdamW(model.embeddings.parameters(), lr=OptimizerSettings().learning_rate)
    for _ in range(10):
        for parameter in model.embeddings.tokens.parameters():
            parameter.grad = 1e-6 * torch.randn_like(parameter)
        optimizer.step()
    assert mass(local_attention(model, 0)[0], 1) > 0.3


@torch.no_grad()
def test_lsh_queries_prefer_some_keys_from_the_beginning() -> None:
    model = initial_model()
    layer = model.config.attn_layers.index("lsh")
    attention = model.reversible_layers[layer].attention
    assert isinstance(attention, LSHAttention)
    hidden = model.embed(torch.randint(512, (1, TOKENS)), torch.arange(TOKENS))
    query, _ = attention.project(hidden)
    logits = query @ normalised_keys(query).transpose(-1, -2)
    others = ~torch.eye(TOKENS, dtype=torch.bool)
    assert 1.0 < float(logits[..., others].std()) < 4.0
