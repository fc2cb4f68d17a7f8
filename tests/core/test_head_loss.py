"""The head's loss: its gradients are computed with it, a block of tokens at a time."""

import pytest
import torch
from torch import nn

from reformer_core.head_loss import head_loss

WIDTH, VOCAB = 6, 11


@pytest.fixture
def head() -> nn.Linear:
    return nn.Linear(2 * WIDTH, VOCAB)


def inputs(rows: int = 2, tokens: int = 21) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    streams = [torch.randn(rows, tokens, WIDTH, generator=generator).requires_grad_() for _ in range(2)]
    return *streams, torch.randint(VOCAB, (rows, tokens), generator=generator)


def ours(head: nn.Linear, stream1: torch.Tensor, stream2: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return head_loss(stream1, stream2, targets, head, list(head.parameters()))


def test_equals_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch, head: nn.Linear) -> None:
    monkeypatch.setattr("reformer_core.head_loss.HEAD_BLOCK_TOKENS", 8)
    *streams, targets = inputs()
    targets[0, 3:15] = -100
    wanted = [*streams, *head.parameters()]
    loss = ours(head, *streams, targets)
    plain = nn.functional.cross_entropy(head(torch.cat(streams, dim=-1)).flatten(0, 1), targets.flatten()) * 30
    torch.testing.assert_close(loss, plain)
    expected = torch.autograd.grad(plain / 7, wanted)
    for grad, expected_grad in zip(torch.autograd.grad(loss / 7, wanted), expected, strict=True):
        torch.testing.assert_close(grad, expected_grad)


def test_logits_are_computed_once_for_each_token(monkeypatch: pytest.MonkeyPatch, head: nn.Linear) -> None:
    monkeypatch.setattr("reformer_core.head_loss.HEAD_BLOCK_TOKENS", 16)
    computed: list[int] = []
    head.register_forward_hook(lambda _, args, logits: computed.append(len(logits)))
    *streams, targets = inputs()
    ours(head, *streams, targets).backward()
    assert computed == [16, 16, 10]


def test_without_gradients_there_is_only_a_loss(head: nn.Linear) -> None:
    *streams, targets = inputs()
    expected = ours(head, *streams, targets)
    for without in (torch.no_grad(), torch.inference_mode()):
        with without:
            loss = ours(head, *streams, targets)
        assert loss == expected
        assert not loss.requires_grad


def test_frozen_weights_get_no_gradient(head: nn.Linear) -> None:
    head.bias.requires_grad_(False)
    *streams, targets = inputs()
    ours(head, *streams, targets).backward()
    assert head.bias.grad is None
    assert head.weight.grad is not None
    assert streams[0].grad is not None


def test_a_second_backward_pass_is_refused(head: nn.Linear) -> None:
    *streams, targets = inputs()
    loss = ours(head, *streams, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()
