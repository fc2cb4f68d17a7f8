"""The training loss of the language model's head, a block of tokens at a time.

The loss is the last thing that a training step computes, so its gradients are computed at once, while a block's logits
are there: logits are computed once, and never exist for all tokens.

Shapes: B batch, n tokens, d width.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import nn

from reformer_core.blockwise import Autocast, ParameterGradients

HEAD_BLOCK_TOKENS = 2048  # tokens × vocabulary exists for this many tokens at a time


def head_loss(
    stream1: torch.Tensor,
    stream2: torch.Tensor,
    targets: torch.Tensor,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    parameters: Sequence[nn.Parameter],
) -> torch.Tensor:
    """Sum of the cross-entropy in nats, differentiable once in the streams and the head's parameters.

    Args:
        stream1, stream2: [B, n, d].
        targets: int64 [B, n]; -100 is left out.
        logits_of: from both streams side by side, [m, 2 d], to logits, float32 [m, vocab].
        parameters: of `logits_of`.
    """
    wanted = torch.is_grad_enabled()  # asked here: inside an autograd function nothing is differentiated
    loss = _HeadLoss.apply(stream1, stream2, targets, logits_of, wanted, *parameters)  # type: ignore[no-untyped-call]
    return cast(torch.Tensor, loss)


class _Context(Protocol):
    """What autograd's context object holds between the two passes."""

    grads: list[torch.Tensor | None] | None


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        stream1: torch.Tensor,
        stream2: torch.Tensor,
        targets: torch.Tensor,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        wanted: bool,
        *parameters: nn.Parameter,
    ) -> torch.Tensor:
        autocast = Autocast.current(stream1.device)
        streams, targets = [stream1.flatten(0, 1), stream2.flatten(0, 1)], targets.flatten()
        stream_grads = [torch.empty_like(stream) for stream in streams] if wanted else []
        parameter_grads = ParameterGradients(parameters)
        total = torch.zeros((), dtype=torch.float32, device=stream1.device)
        for start in range(0, len(targets), HEAD_BLOCK_TOKENS):
            block = slice(start, start + HEAD_BLOCK_TOKENS)
            x = torch.cat([stream[block] for stream in streams], dim=-1).requires_grad_(wanted)
            with torch.set_grad_enabled(wanted), autocast.again():
                loss = nn.functional.cross_entropy(logits_of(x), targets[block], reduction="sum")
            total += loss.detach()
            if wanted:
                grads = parameter_grads.add([loss], x).chunk(2, dim=-1)
                for stream_grad, grad in zip(stream_grads, grads, strict=True):
                    stream_grad[block] = grad
        ctx.grads = [*(grad.view(stream1.shape) for grad in stream_grads), None, None, None, *parameter_grads.all]
        return total

    @staticmethod
    def backward(ctx: _Context, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # scaled in place: they are large
        if grads is None:
            raise RuntimeError("a head's loss keeps its gradients for one backward pass; compute the loss again")
        return tuple(None if grad is None else grad.mul_(grad_loss) for grad in grads)
