"""Reversible layers (paper, section 3): the backward pass rebuilds each layer's inputs from its outputs.

    y1 = x1 + Attention(x2)        x2 = y2 - FeedForward(y1)
    y2 = x2 + FeedForward(y1)      x1 = y1 - Attention(x2)

So nothing is kept per layer but the LSH buckets: small integers, which must be the very ones of the forward pass, for
the rebuilt inputs differ from it by rounding. Dropout repeats itself by seeding its generator again.

Shapes: B batch, n tokens, d width.
"""

from collections.abc import Sequence
from itertools import count
from typing import Protocol, cast

import torch
from torch import nn

from reformer_core.blockwise import Autocast, ParameterGradients
from reformer_core.feed_forward import FeedForward
from reformer_core.layer_passes import (
    add_attention,
    add_feed_forward,
    empty_buckets,
    take_back_attention,
    take_back_feed_forward,
)
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention

# Small batches keep what autograd saves, about this much at most: a third faster.
KEPT_BYTES, GPU_KEPT_BYTES = 512 << 20, 4 << 30


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

    Differentiable once in `hidden` and the layers' parameters, with memory that doesn't grow with the number of layers:
    the backward pass overwrites the streams. Of a small batch the activations are kept, up to `KEPT_BYTES`, or on a GPU
    `GPU_KEPT_BYTES`; it makes no difference but rounding.

    Args:
        dropout_seed: None for inference, without dropout.
    """
    most = GPU_KEPT_BYTES if hidden.is_cuda else KEPT_BYTES
    if torch.is_grad_enabled() and _activation_bytes(layers, hidden) <= most:
        return _run_and_keep(layers, hidden, dropout_seed)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    streams = _ReversibleLayers.apply(hidden, layers, dropout_seed, *parameters)  # type: ignore[no-untyped-call]
    return cast(tuple[torch.Tensor, torch.Tensor], streams)


def _dtype(layers: Sequence[Layer]) -> torch.dtype:
    """Of the layers' weights, and of the first stream."""
    return layers[0].feed_forward.outer.weight.dtype


def _run_and_keep(layers: Sequence[Layer], hidden: torch.Tensor, seed: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    stream1, stream2 = hidden.to(_dtype(layers)), hidden
    for layer, (attention_seed, feed_forward_seed) in zip(layers, _seeds(seed, len(layers)), strict=True):
        stream1 = stream1 + layer.attention(stream2, None, _generator(attention_seed, hidden))
        stream2 = stream2 + layer.feed_forward(stream1, _generator(feed_forward_seed, hidden))
    return stream1, stream2


def _activation_bytes(layers: Sequence[Layer], hidden: torch.Tensor) -> int:
    """About what autograd would keep of all layers: streams and norms, projections and output, both sides of relu."""
    config = layers[0].attention.config
    inner = config.num_attention_heads * config.attention_head_size
    a_token = 4 * config.hidden_size + 5 * inner + 2 * config.feed_forward_size
    return len(layers) * hidden[..., 0].numel() * a_token * hidden.element_size()


class _Context(Protocol):
    """What autograd's context object holds between the two passes."""

    layers: Sequence[Layer]
    seed: int | None
    buckets: list[torch.Tensor | None]
    autocast: Autocast
    saved_tensors: tuple[torch.Tensor, torch.Tensor]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class _ReversibleLayers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, hidden: torch.Tensor, layers: Sequence[Layer], seed: int | None, *_: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.layers, ctx.seed, ctx.autocast = layers, seed, Autocast.current(hidden.device)
        ctx.buckets = [empty_buckets(layer.attention, hidden) for layer in layers]
        stream1, stream2 = hidden.to(_dtype(layers), copy=True), hidden.clone()
        with ctx.autocast.again():
            for layer, buckets, (attention_seed, feed_forward_seed) in zip(
                layers, ctx.buckets, _seeds(seed, len(layers)), strict=True
            ):
                add_attention(stream1, layer.attention, stream2, buckets, _generator(attention_seed, hidden))
                add_feed_forward(stream2, layer.feed_forward, stream1, _generator(feed_forward_seed, hidden))
        ctx.save_for_backward(stream1, stream2)
        return stream1, stream2

    @staticmethod
    def backward(ctx: _Context, grad1: torch.Tensor, grad2: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # What lives longest is allocated first: between large tensors it would keep their memory from being used again.
        grads = [
            (ParameterGradients(layer.attention.parameters()), ParameterGradients(layer.feed_forward.parameters()))
            for layer in ctx.layers
        ]
        stream1, stream2 = ctx.saved_tensors  # rebuilt in place
        grad1, grad2 = grad1.clone(), grad2.clone()
        for layer, buckets, (attention_grads, feed_forward_grads), (attention_seed, feed_forward_seed) in zip(
            reversed(ctx.layers),
            reversed(ctx.buckets),
            reversed(grads),
            reversed(_seeds(ctx.seed, len(ctx.layers))),
            strict=True,
        ):
            take_back_feed_forward(
                stream2,
                layer.feed_forward,
                stream1,
                _generator(feed_forward_seed, stream1),
                grad_stream=grad2,
                grad_hidden=grad1,
                parameter_grads=feed_forward_grads,
                autocast=ctx.autocast,
            )
            take_back_attention(
                stream1,
                layer.attention,
                stream2,
                buckets,
                _generator(attention_seed, stream2),
                grad_stream=grad1,
                grad_hidden=grad2,
                parameter_grads=attention_grads,
                autocast=ctx.autocast,
            )
        flat = [grad for both in grads for of_block in both for grad in of_block.all]
        return (grad1.add_(grad2), None, None, *flat)


def _seeds(seed: int | None, layers: int) -> list[tuple[int | None, int | None]]:
    """Seeds of each layer's two blocks."""
    if seed is None:
        return [(None, None)] * layers
    numbers = count(seed)
    return [(next(numbers), next(numbers)) for _ in range(layers)]


def _generator(seed: int | None, like: torch.Tensor) -> torch.Generator | None:
    return None if seed is None else torch.Generator(like.device).manual_seed(seed)
