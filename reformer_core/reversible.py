"""Reversible layers (paper, section 3): the backward pass rebuilds each layer's inputs from its outputs.

    y1 = x1 + Attention(x2)        x2 = y2 - FeedForward(y1)
    y2 = x2 + FeedForward(y1)      x1 = y1 - Attention(x2)

So nothing is kept per layer but the LSH buckets: small integers, which must be the very ones of the forward pass, for
the rebuilt inputs differ from it by rounding. Dropout repeats itself by seeding its generator again.

Shapes: B batch, n tokens, d width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Protocol, cast

import torch
from torch import nn

from reformer_core.feed_forward import BLOCK_TOKENS, FeedForward
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention


class Layer(nn.Module):
    """One reversible layer: an attention block and a feed-forward block."""

    def __init__(self, attention: LSHAttention | LocalAttention, feed_forward: FeedForward) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward


def run_layers(
    layers: Sequence[Layer], hidden: torch.Tensor, dropout_seed: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both streams after all layers, each [B, n, d]; both start as `hidden` [B, n, d].

    Differentiable in `hidden` and the layers' parameters, with memory that doesn't grow with the number of layers.

    Args:
        dropout_seed: None for inference, without dropout.
    """
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    streams = _ReversibleLayers.apply(hidden, layers, dropout_seed, *parameters)  # type: ignore[no-untyped-call]
    return cast(tuple[torch.Tensor, torch.Tensor], streams)


class _Context(Protocol):
    """What autograd's context object holds between the two passes."""

    layers: Sequence[Layer]
    seed: int | None
    buckets: list[torch.Tensor | None]
    autocast: tuple[str, torch.dtype, bool] | None
    saved_tensors: tuple[torch.Tensor, torch.Tensor]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class _ReversibleLayers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, hidden: torch.Tensor, layers: Sequence[Layer], seed: int | None, *_: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.layers, ctx.seed, ctx.buckets, ctx.autocast = layers, seed, [], _autocast_state(hidden.device.type)
        seeds = _seeds(seed, len(layers))
        stream1, stream2 = hidden.clone(), hidden.clone()
        with _same_autocast(ctx.autocast):
            for layer, (attention_seed, feed_forward_seed) in zip(layers, seeds, strict=True):
                buckets = layer.attention.buckets(stream2) if isinstance(layer.attention, LSHAttention) else None
                ctx.buckets.append(None if buckets is None else buckets.to(torch.int32))
                stream1 += layer.attention(stream2, buckets, _generator(attention_seed, hidden))
                generator = _generator(feed_forward_seed, hidden)
                for start in range(0, hidden.shape[1], BLOCK_TOKENS):
                    block = slice(start, start + BLOCK_TOKENS)
                    stream2[:, block] += layer.feed_forward(stream1[:, block], generator)
        ctx.save_for_backward(stream1, stream2)
        return stream1, stream2

    @staticmethod
    def backward(ctx: _Context, grad1: torch.Tensor, grad2: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        stream1, stream2 = (stream.clone() for stream in ctx.saved_tensors)
        grad1, grad2 = grad1.clone(), grad2.clone()
        parameter_grads: list[list[torch.Tensor | None]] = []
        seeds = _seeds(ctx.seed, len(ctx.layers))
        for layer, buckets, (attention_seed, feed_forward_seed) in zip(
            reversed(ctx.layers), reversed(ctx.buckets), reversed(seeds), strict=True
        ):
            attention, feed_forward = layer.attention, layer.feed_forward
            feed_forward_grads = _Gradients(feed_forward)
            generator = _generator(feed_forward_seed, stream1)
            for start in range(0, stream1.shape[1], BLOCK_TOKENS):
                block = slice(start, start + BLOCK_TOKENS)
                with torch.enable_grad(), _same_autocast(ctx.autocast):
                    x = stream1[:, block].detach().requires_grad_()
                    y = feed_forward(x, generator)
                stream2[:, block] -= y.detach()
                grad1[:, block] += feed_forward_grads.add(y, x, grad2[:, block])
            attention_grads = _Gradients(attention)
            with torch.enable_grad(), _same_autocast(ctx.autocast):
                x = stream2.detach().requires_grad_()
                y = attention(x, None if buckets is None else buckets.long(), _generator(attention_seed, x))
            stream1 -= y.detach()
            grad2 += attention_grads.add(y, x, grad1)
            parameter_grads.append(attention_grads.parameters + feed_forward_grads.parameters)
        flat = [grad for grads in reversed(parameter_grads) for grad in grads]
        return (grad1 + grad2, None, None, *flat)


class _Gradients:
    """Gradients of one block's parameters, added up over blocks of tokens."""

    def __init__(self, module: nn.Module) -> None:
        self._all = list(module.parameters())
        self.parameters: list[torch.Tensor | None] = [None] * len(self._all)

    def add(self, y: torch.Tensor, x: torch.Tensor, grad_y: torch.Tensor) -> torch.Tensor:
        """Backward from y to x [..., d] and the parameters; returns the gradient of x."""
        trainable = [index for index, parameter in enumerate(self._all) if parameter.requires_grad]
        inputs = [x, *(self._all[index] for index in trainable)]
        grad_x, *grads = torch.autograd.grad(y, inputs, grad_y.to(y.dtype))
        for index, grad in zip(trainable, grads, strict=True):
            before = self.parameters[index]
            self.parameters[index] = grad if before is None else before + grad
        return grad_x


def _seeds(seed: int | None, layers: int) -> list[tuple[int | None, int | None]]:
    """Seeds of each layer's two blocks."""
    if seed is None:
        return [(None, None)] * layers
    numbers = count(seed)
    return [(next(numbers), next(numbers)) for _ in range(layers)]


def _generator(seed: int | None, like: torch.Tensor) -> torch.Generator | None:
    return None if seed is None else torch.Generator(like.device).manual_seed(seed)


def _autocast_state(device: str) -> tuple[str, torch.dtype, bool] | None:
    """Device, dtype and whether it is on; None for a device that has no autocast, e.g. meta."""
    if not torch.amp.is_autocast_available(device):
        return None
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


@contextmanager
def _same_autocast(state: tuple[str, torch.dtype, bool] | None) -> Iterator[None]:
    """The forward pass's autocast. Without its cache: weights cast in the forward pass have no gradient."""
    if state is None:
        yield
        return
    device, dtype, enabled = state
    with torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield
