"""The attention kernel: against a loop over single queries, and its backward against autograd."""

from typing import Any

import pytest
import torch

from reformer_core.attention_kernels import weighted_sums
from reformer_core.rounds import gather_tokens
from reformer_core.window_attention import attend, attend_slots, attend_slots_backward
from tests.core.naive import naive_attention

LENGTH, HEAD_SIZE = 4, 8
GENERIC = 1e-30  # a dropout that never drops, and so the path that every device has


def slots(before: int, chunks: int = 3, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """query, key, value, position of 2 × 2 sequences of sorted slots, some of them padding, some met twice."""
    generator = torch.Generator().manual_seed(before)
    tokens = chunks * LENGTH
    query, key, value = (torch.randn(2, 2, tokens, HEAD_SIZE, generator=generator, dtype=dtype) for _ in range(3))
    order, other_round = (
        torch.stack([torch.randperm(tokens, generator=generator) for _ in range(4)]).view(2, 2, tokens)
        for _ in range(2)
    )
    position = torch.cat([other_round[..., : before * LENGTH], order], dim=-1)
    return gather_tokens(query, order), gather_tokens(key, position), gather_tokens(value, position), position


def windows(x: torch.Tensor, before: int) -> torch.Tensor:
    """[..., m, D] or [..., m] -> [..., c, W, D] or [..., c, W], by plain indexing."""
    length, axis = (1 + before) * LENGTH, 2
    starts = range(0, x.shape[axis] - length + 1, LENGTH)
    return torch.stack([x[:, :, start : start + length] for start in starts], dim=axis)


def per_token(grad: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Gradients of slots, added up where slots are of the same token: all that matters."""
    return torch.zeros_like(grad).scatter_add_(-2, position.unsqueeze(-1).expand_as(grad), grad)


def attend_windows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor, before: int, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend_slots` by `attend` on copied windows: differentiable."""
    behind = position[..., before * LENGTH :].unflatten(-1, (-1, LENGTH))
    out, log_sum_exp = attend(
        query.unflatten(-2, (-1, LENGTH)),
        *(windows(x, before) for x in (key, value)),
        behind,
        windows(position, before),
        **options,
    )
    return out.flatten(-3, -2), log_sum_exp.flatten(-2)


@pytest.mark.parametrize("shared_qk", [False, True])
@pytest.mark.parametrize("dropout_prob", [0.0, GENERIC], ids=["flash", "generic"])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_equals_a_loop_over_queries(shared_qk: bool, dropout_prob: float, before: int) -> None:
    query, key, value, position = slots(before)
    out, log_sum_exp = attend_slots(
        query, key, value, position, length=LENGTH, before=before, shared_qk=shared_qk, dropout_prob=dropout_prob
    )
    for row, head in ((0, 0), (1, 1)):
        for slot in range(query.shape[-2]):
            start = slot // LENGTH * LENGTH
            window = slice(start, start + (1 + before) * LENGTH)
            expected, expected_log_sum_exp = naive_attention(
                query[row, head, slot],
                key[row, head, window],
                value[row, head, window],
                position[row, head, before * LENGTH + slot],
                position[row, head, window],
                shared_qk,
            )
            alone = bool(expected_log_sum_exp < -9e4)  # there, 1e5 in float32 is as coarse as 1/128
            torch.testing.assert_close(out[row, head, slot], expected, atol=1e-2 if alone else 1e-9, rtol=0)
            torch.testing.assert_close(
                log_sum_exp[row, head, slot].double(), expected_log_sum_exp, atol=1e-2 if alone else 1e-6, rtol=0
            )


def test_some_queries_are_alone() -> None:
    """Otherwise the tests here would miss a case: a query that sees nothing but itself attends to itself."""
    query, key, value, position = slots(1)
    out, _ = attend_slots(query, key, value, position, length=LENGTH, before=1, shared_qk=True)
    first = (position[..., LENGTH:] == 0).unsqueeze(-1)
    own = value[..., LENGTH:, :]
    torch.testing.assert_close(out[first.expand_as(out)], own[first.expand_as(own)], atol=1e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared_qk", [False, True])
def test_half_precision_stays_near(dtype: torch.dtype, shared_qk: bool) -> None:
    query, key, value, position = slots(1)
    options: dict[str, Any] = {"length": LENGTH, "before": 1, "shared_qk": shared_qk}
    expected, expected_log_sum_exp = attend_slots(query, key, value, position, **options)
    out, log_sum_exp = attend_slots(query.to(dtype), key.to(dtype), value.to(dtype), position, **options)
    assert (out.dtype, log_sum_exp.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.double(), expected, atol=0.06, rtol=0)
    torch.testing.assert_close(log_sum_exp.double(), expected_log_sum_exp, atol=0.06, rtol=0)


@pytest.mark.parametrize("shared_qk", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_separate_products(shared_qk: bool, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a document is read where the CPU multiplies bfloat16."""
    monkeypatch.setattr("reformer_core.placement.cpu_multiplies_bfloat16", lambda: True)
    *vectors, position = slots(before)
    vectors = [x.bfloat16() for x in vectors]
    options: dict[str, Any] = {"length": LENGTH, "before": before, "shared_qk": shared_qk}
    expected, expected_log_sum_exp = attend_slots(*(x.double() for x in vectors), position, **options)
    out, log_sum_exp = attend_slots(*vectors, position, **options, has_backward=False)
    assert (out.dtype, log_sum_exp.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.double(), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(log_sum_exp.double(), expected_log_sum_exp, atol=0.03, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout_prob", [0.0, GENERIC], ids=["flash", "generic"])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_positions_of_one_chunk_stand_for_all(before: int, dropout_prob: float, dtype: torch.dtype) -> None:
    *vectors, _ = slots(before, dtype=dtype)
    position = torch.arange(100, 100 + vectors[1].shape[-2]).unsqueeze(0)
    options: dict[str, Any] = {"length": LENGTH, "before": before, "shared_qk": False, "has_backward": False}
    expected = attend_slots(*vectors, position, **options, dropout_prob=dropout_prob)
    found = attend_slots(*vectors, position[:, : (before + 1) * LENGTH], **options, dropout_prob=dropout_prob)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shared_qk", [False, True])
@pytest.mark.parametrize("dropout_prob", [0.0, GENERIC, 0.4], ids=["flash", "generic", "dropout"])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_backward_equals_autograd(shared_qk: bool, dropout_prob: float, before: int) -> None:
    *inputs, position = slots(before)
    inputs = [x.requires_grad_() for x in inputs]
    grad_out = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def generator() -> torch.Generator | None:
        return torch.Generator().manual_seed(5) if dropout_prob == 0.4 else None

    out, log_sum_exp = attend_windows(
        *inputs, position, before, shared_qk=shared_qk, dropout_prob=dropout_prob, generator=generator()
    )
    expected = torch.autograd.grad(out, inputs, grad_out)
    with torch.no_grad():
        options: dict[str, Any] = {"length": LENGTH, "before": before, "shared_qk": shared_qk}
        options["dropout_prob"] = dropout_prob
        again, again_log_sum_exp = attend_slots(*inputs, position, **options, generator=generator())
        grads = attend_slots_backward(grad_out, *inputs, position, out, log_sum_exp, **options, generator=generator())
    torch.testing.assert_close(again, out, atol=1e-2 if shared_qk else 1e-9, rtol=0)
    torch.testing.assert_close(again_log_sum_exp.double(), log_sum_exp, atol=1e-2, rtol=0)
    for grad, expected_grad, at in zip(
        grads, expected, (position[..., before * LENGTH :], position, position), strict=True
    ):
        torch.testing.assert_close(per_token(grad, at), per_token(expected_grad, at), atol=1e-9, rtol=0)


def test_values_of_zero_have_a_gradient_under_dropout() -> None:
    query, key, value, position = slots(1)
    value = torch.zeros_like(value).requires_grad_()
    options: dict[str, Any] = {"shared_qk": False, "dropout_prob": 0.5}
    out, log_sum_exp = attend_windows(
        query, key, value, position, 1, **options, generator=torch.Generator().manual_seed(5)
    )
    (expected,) = torch.autograd.grad(out.sum(), value)
    with torch.no_grad():
        _, _, grad = attend_slots_backward(
            torch.ones_like(out),
            query,
            key,
            value,
            position,
            out,
            log_sum_exp,
            length=LENGTH,
            before=1,
            **options,
            generator=torch.Generator().manual_seed(5),
        )
    torch.testing.assert_close(grad, expected)
    assert grad.abs().sum() > 0


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    position = torch.arange(64)
    query, key = torch.zeros(1, 64, 4), torch.zeros(1, 64, 4)
    out, _ = attend(
        query,
        key,
        torch.ones(1, 64, 1),
        torch.tensor(64),
        position,
        shared_qk=False,
        dropout_prob=0.25,
        generator=torch.Generator().manual_seed(0),
    )
    assert float(out.mean()) == pytest.approx(1, abs=0.05)
    assert float(out.std()) > 0.02


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes(device: str) -> None:
    query, key, value, position = (x.to(device) for x in slots(1, dtype=torch.float32))
    out, log_sum_exp = attend_slots(query, key, value, position, length=LENGTH, before=1, shared_qk=True)
    assert out.shape == query.shape
    assert log_sum_exp.shape == query.shape[:-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weighted_sums(dtype: torch.dtype) -> None:
    """Of rows that lie anywhere, some of them met twice."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(50, HEAD_SIZE, generator=generator).to(dtype)
    where = torch.randint(50, (6, 20), generator=generator)
    weights = torch.rand(6, 20, generator=generator).softmax(dim=-1).to(dtype)
    expected = torch.stack([weight.double() @ rows[at].double() for at, weight in zip(where, weights, strict=True)])
    found = weighted_sums(rows, where, weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)
    on_meta = weighted_sums(*(x.to("meta") for x in (rows, where, weights)))
    assert (on_meta.shape, on_meta.dtype) == (found.shape, dtype)
