"""Reversible layers: gradients equal plain autograd's, inputs are rebuilt, memory does not depend on depth."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from reformer_core import (
    ReformerConfig,
    ReformerModel,
    layer_passes,
    local_attention,
    lsh_attention,
    reversible,
    rounds,
)
from reformer_core.layer_passes import project_heads, token_blocks
from reformer_core.lsh_attention import LSHAttention
from reformer_core.reversible import Layer, run_layers
from reformer_core.rounds import SlotLayout, attend_rounds
from tests.core.live_memory import LiveMemory
from tests.core.models import random_model, small_config
from tests.core.naive import naive_rounds

DROPOUT = {
    "hidden_dropout_prob": 0.1,
    "lsh_attention_probs_dropout_prob": 0.2,
    "local_attention_probs_dropout_prob": 0.3,
}


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or all that is small enough for these tests would be."""
    monkeypatch.setattr(reversible, "KEPT_BYTES", 0)


def plain_layers(layers: list[Layer], hidden: torch.Tensor, seed: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """`run_layers` as autograd would do it: every activation is kept."""
    stream1 = stream2 = hidden
    for index, layer in enumerate(layers):
        generators = [
            None if seed is None else torch.Generator().manual_seed(seed + 2 * index + block) for block in (0, 1)
        ]
        attention, blocks = layer.attention, list(token_blocks(hidden))
        heads = project_heads(attention, stream2)
        buckets = attention.hash(heads[0]) if isinstance(attention, LSHAttention) else None
        mixed = attention.mix(*heads, buckets, generators[0])
        merged = [attention.merge(mixed[..., block, :], generators[0]) for block in blocks]
        stream1 = stream1 + torch.cat(merged, dim=1)
        fed = [layer.feed_forward(stream1[:, block], generators[1]) for block in blocks]
        stream2 = stream2 + torch.cat(fed, dim=1)
    return stream1, stream2


def gradients(
    run: Callable[..., tuple[torch.Tensor, torch.Tensor]], model: ReformerModel, hidden: torch.Tensor, seed: int | None
) -> dict[str, torch.Tensor]:
    """Of a random linear function of both streams, in the input and all parameters; and the streams."""
    model.zero_grad()
    hidden = hidden.clone().requires_grad_()
    stream1, stream2 = run(model.reversible_layers, hidden, seed)
    streams = {"stream1": stream1.detach().clone(), "stream2": stream2.detach().clone()}
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(hidden.shape, generator=generator, dtype=hidden.dtype) for _ in range(2)]
    ((stream1 * weights[0]).sum() + (stream2 * weights[1]).sum()).backward()
    parameters = {name: parameter.grad for name, parameter in model.layers.named_parameters()}
    return {"hidden": hidden.grad, **streams, **parameters}


def random_hidden(config: ReformerConfig, rows: int, tokens: int) -> torch.Tensor:
    return torch.randn(rows, tokens, config.hidden_size, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("seed", [None, 7], ids=["inference", "dropout"])
@pytest.mark.parametrize(
    ("rows", "tokens", "values"),
    [
        (1, 5, {}),
        (2, 8, {}),
        (2, 37, {"num_hashes": 1}),
        (3, 101, {"num_hashes": 3, "num_buckets": (4, 8)}),
        (1, 128, {"attn_layers": ("lsh", "lsh"), "num_hashes": 4}),
        (2, 50, {"attn_layers": ("lsh", "local", "lsh"), "local_attn_chunk_length": 12, "num_hashes": 2}),
        (1, 70, {"local_num_chunks_before": 2, "lsh_num_chunks_before": 2}),
    ],
)
def test_gradients_equal_plain_autograd(
    monkeypatch: pytest.MonkeyPatch, seed: int | None, rows: int, tokens: int, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(layer_passes, "BLOCK_TOKENS", 32)
    model = random_model(small_config(**DROPOUT, **values)).double()
    hidden = random_hidden(model.config, rows, tokens)
    ours = gradients(run_layers, model, hidden, seed)
    monkeypatch.setattr(lsh_attention, "attend_rounds", naive_rounds)
    monkeypatch.setattr(local_attention, "attend_rounds", naive_rounds)
    expected = gradients(plain_layers, model, hidden, seed)
    for name, tensor in expected.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(
            ours[name], tensor, atol=1e-5 * scale, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("seed", [None, 7], ids=["inference", "dropout"])
def test_kept_activations_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch, seed: int | None) -> None:
    model = random_model(small_config(attn_layers=("local", "lsh") * 2, **DROPOUT)).double()
    hidden = random_hidden(model.config, 2, 45)
    rebuilt = gradients(run_layers, model, hidden, seed)
    monkeypatch.setattr(reversible, "KEPT_BYTES", 1 << 30)
    kept = gradients(run_layers, model, hidden, seed)
    for name, tensor in rebuilt.items():
        torch.testing.assert_close(kept[name], tensor, atol=1e-9 * float(tensor.abs().max()), rtol=0)


def test_no_more_is_kept_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = saved_bytes(run_layers, 12)
    monkeypatch.setattr(reversible, "KEPT_BYTES", saved_bytes(plain_layers, 12) // 2)
    assert saved_bytes(run_layers, 12) == expected
    monkeypatch.setattr(reversible, "KEPT_BYTES", saved_bytes(plain_layers, 12) * 2)
    assert saved_bytes(run_layers, 12) > 10 * expected


@pytest.mark.parametrize("num_rounds", [1, 3])
@pytest.mark.parametrize("shared_qk", [False, True])
@pytest.mark.parametrize("dropout_prob", [0.0, 0.3])
def test_rounds_equal_whole_matrices(num_rounds: int, shared_qk: bool, dropout_prob: float) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, 2, 21, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    buckets = torch.randint(4, (2, 2, num_rounds, 21), generator=generator)
    order = lsh_attention.sorted_order(buckets, 24)

    def layout() -> SlotLayout:
        return SlotLayout(4, 1, shared_qk, dropout_prob, torch.Generator().manual_seed(4) if dropout_prob else None)

    inputs = [x.requires_grad_() for x in (query, key, value)]
    grad_out = torch.randn(query.shape, generator=generator, dtype=torch.float64)
    expected = naive_rounds(*inputs, order, layout())
    ours = attend_rounds(*inputs, order, layout())
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    expected_grads = torch.autograd.grad(expected, inputs, grad_out)
    for grad, expected_grad in zip(torch.autograd.grad(ours, inputs, grad_out), expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shared_qk", [False, True])
@pytest.mark.parametrize("dropout_prob", [0.0, 0.3])
def test_rounds_in_parts_have_the_right_gradients(
    monkeypatch: pytest.MonkeyPatch, shared_qk: bool, dropout_prob: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(1, 2, 21, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    order = lsh_attention.sorted_order(torch.randint(4, (1, 2, 2, 21), generator=generator), 24)

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        seeded = torch.Generator().manual_seed(4) if dropout_prob else None
        return attend_rounds(*inputs, order, SlotLayout(4, 1, shared_qk, dropout_prob, seeded))

    whole = attend(*inputs)
    monkeypatch.setattr(rounds, "CPU_PART_SLOTS", 2 * 2 * 4)  # two chunks of both heads
    if not dropout_prob:  # else it depends on the order in which it is drawn
        torch.testing.assert_close(attend(*inputs), whole)
    assert torch.autograd.gradcheck(attend, inputs, eps=1e-5, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_backward_rebuilds_the_inputs_of_every_block(dtype: torch.dtype, tolerance: float) -> None:
    model = random_model(small_config(attn_layers=("local", "lsh") * 3, **DROPOUT)).to(dtype)
    seen: dict[torch.nn.Module, list[torch.Tensor]] = {}
    for layer in model.reversible_layers:
        for block in (layer.attention, layer.feed_forward):
            block.norm.register_forward_pre_hook(
                lambda norm, inputs: seen.setdefault(norm, []).append(inputs[0].detach().clone())
            )
    gradients(run_layers, model, random_hidden(model.config, 2, 45).to(dtype), seed=1)
    assert len(seen) == 12
    for forward, *rebuilt in seen.values():
        assert rebuilt
        for again in rebuilt:
            torch.testing.assert_close(again, forward, atol=tolerance, rtol=0)


def saved_bytes(run: Callable[..., tuple[torch.Tensor, torch.Tensor]], layers: int) -> int:
    """Bytes of activations that the graph keeps for the backward pass, each storage counted once."""
    model = random_model(small_config(attn_layers=("local", "lsh") * (layers // 2)))
    hidden = torch.randn(1, 64, 32, requires_grad=True)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        streams = run(model.reversible_layers, hidden, 1)
    del streams
    return sum(storages.values())


def test_memory_does_not_grow_with_depth() -> None:
    assert saved_bytes(run_layers, 2) == saved_bytes(run_layers, 12) == 2 * 64 * 32 * 4
    assert saved_bytes(plain_layers, 12) > 5 * saved_bytes(plain_layers, 2)  # so that the count means something


def peak_bytes(layers: int) -> int:
    """The most that a step held at once; the layers' own gradients aside, since their weights are frozen."""
    model = random_model(small_config(attn_layers=("local", "lsh") * (layers // 2)))
    model.layers.requires_grad_(False)
    token_ids = torch.randint(50, (1, 512), generator=torch.Generator().manual_seed(0))
    with LiveMemory() as memory:
        model.loss(token_ids, token_ids, torch.tensor([0])).backward()
    return memory.peak_bytes


def test_peak_memory_does_not_grow_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the buckets of LSH layers, a few bytes a token."""
    rounds, heads, lsh_layers = 2, 2, 5
    assert peak_bytes(12) - peak_bytes(2) <= lsh_layers * rounds * heads * 512 * 4
    monkeypatch.setattr(reversible, "KEPT_BYTES", 1 << 30)
    assert peak_bytes(12) > 2 * peak_bytes(2)  # so that the count means something


def test_backward_uses_the_buckets_of_the_forward_pass() -> None:
    """Rebuilt inputs differ by rounding; hashed again, a close decision could fall the other way."""
    model = random_model(small_config(attn_layers=("lsh",))).double()
    hidden = random_hidden(model.config, 1, 64).requires_grad_()
    streams = torch.cat(run_layers(model.reversible_layers, hidden, None), dim=-1)
    model.layers[0].attention.rotations.neg_()
    (after,) = torch.autograd.grad(streams.sum(), hidden)
    model.layers[0].attention.rotations.neg_()
    (expected,) = torch.autograd.grad(
        torch.cat(run_layers(model.reversible_layers, hidden, None), dim=-1).sum(), hidden
    )
    assert torch.equal(after, expected)


def test_frozen_parameters_get_no_gradient() -> None:
    model = random_model(small_config())
    for parameter in model.layers[0].parameters():
        parameter.requires_grad_(False)
    loss = model.loss(torch.ones(1, 20, dtype=torch.long), torch.ones(1, 20, dtype=torch.long), torch.tensor([0]))
    loss.backward()
    assert all(parameter.grad is None for parameter in model.layers[0].parameters())
    assert all(parameter.grad is not None for parameter in model.layers[1].parameters())


def test_loss_and_its_gradients_equal_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_core.head_loss.HEAD_BLOCK_TOKENS", 16)
    model = random_model(small_config(num_hashes=3))
    generator = torch.Generator().manual_seed(0)
    token_ids, targets = (torch.randint(50, (2, 45), generator=generator) for _ in range(2))
    targets[0, 7:20] = -100
    starts = torch.tensor([0, 2000])
    loss = model.loss(token_ids, targets, starts)
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    hidden = model.embed(token_ids, starts.unsqueeze(1) + torch.arange(45))
    logits = model.logits(torch.cat(plain_layers(model.reversible_layers, hidden, None), dim=-1))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-4 * float(parameter.grad.abs().max()), rtol=0)


def test_training_draws_its_dropout_from_the_global_seed() -> None:
    model = random_model(dataclasses.replace(small_config(), **DROPOUT)).train()
    batch = (torch.ones(2, 40, dtype=torch.long), torch.ones(2, 40, dtype=torch.long), torch.tensor([0, 5]))

    def loss(seed: int) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return model.loss(*batch).item()

    assert loss(1) == loss(1) != loss(2)
    model.eval()
    assert loss(1) == loss(2)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_reaches_the_backward_pass(dtype: torch.dtype) -> None:
    model = random_model(small_config(**DROPOUT))
    hidden = random_hidden(model.config, 2, 45).float()
    with torch.autocast("cpu", dtype=dtype):
        ours = gradients(run_layers, model, hidden, 3)
        expected = gradients(plain_layers, model, hidden, 3)
    assert ours["hidden"].dtype == torch.float32
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, atol=0.1 * float(tensor.abs().max()), rtol=0)
