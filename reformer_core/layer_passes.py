"""A reversible layer's blocks, forward and backward, with as little memory as they can do with.

Everything but the attention itself concerns each token alone: it is computed for some tokens at a time, and in the
backward pass once more. Of the whole sequence there are only the heads' queries, keys, values and outputs.

Shapes: B batch, H heads, R hash rounds, D head size, n tokens, d width.
"""

from collections.abc import Iterator

import torch

from reformer_core.blockwise import Autocast, ParameterGradients
from reformer_core.feed_forward import BLOCK_TOKENS, FeedForward
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention, normalised_keys

Attention = LSHAttention | LocalAttention


def empty_buckets(attention: Attention, hidden: torch.Tensor) -> torch.Tensor | None:
    """Where `add_attention` of hidden [B, n, d] leaves its buckets, int32 [B, H, R, n]; None for local attention."""
    if isinstance(attention, LocalAttention):
        return None
    heads, rounds = attention.config.num_attention_heads, attention.config.num_hashes
    return hidden.new_empty(len(hidden), heads, rounds, hidden.shape[1], dtype=torch.int32)


def add_attention(
    stream: torch.Tensor,
    attention: Attention,
    hidden: torch.Tensor,
    buckets: torch.Tensor | None,
    generator: torch.Generator | None,
) -> None:
    """Adds attention of hidden [B, n, d] to the stream [B, n, d], in place, and leaves its buckets in `buckets`."""
    query, key, value = _all_heads(attention, hidden)
    if isinstance(attention, LSHAttention) and buckets is not None:
        for block in token_blocks(hidden):
            buckets[..., block] = attention.hash(query[..., block, :])
    mixed = attention.mix(query, key, value, buckets, generator)
    for block in token_blocks(hidden):
        stream[:, block] += attention.merge(mixed[..., block, :], generator)


def add_feed_forward(
    stream: torch.Tensor, feed_forward: FeedForward, hidden: torch.Tensor, generator: torch.Generator | None
) -> None:
    """Adds the feed-forward block's output for hidden [B, n, d] to the stream [B, n, d], in place."""
    for block in token_blocks(hidden):
        stream[:, block] += feed_forward(hidden[:, block], generator)


def take_back_attention(
    stream: torch.Tensor,
    attention: Attention,
    hidden: torch.Tensor,
    buckets: torch.Tensor | None,
    generator: torch.Generator | None,
    grad_stream: torch.Tensor,
    grad_hidden: torch.Tensor,
    parameter_grads: ParameterGradients,
    autocast: Autocast,
) -> None:
    """The inverse of `add_attention`, and its backward pass.

    Args:
        stream: with the attention added; taken away again in place.
        buckets: of the forward pass.
        generator: as it was at the forward pass's beginning.
        grad_stream: gradient of the stream.
        grad_hidden: the share of attention is added to it.
        parameter_grads: so are the gradients of the block's parameters to these.
        autocast: the forward pass's.
    """
    with autocast.again():
        query, key, value = heads = _all_heads(attention, hidden)
        for x in heads:
            x.requires_grad_()
        with torch.enable_grad():
            mixed = attention.mix(query, key, value, buckets, generator)
    grad_mixed = torch.empty_like(mixed)
    for block in token_blocks(hidden):
        with torch.enable_grad(), autocast.again():
            x = mixed[..., block, :].detach().requires_grad_()
            y = attention.merge(x, generator)
        stream[:, block] -= y.detach()
        grad_mixed[..., block, :] = parameter_grads.add([y], x, [grad_stream[:, block]])
    grad_heads = torch.autograd.grad(mixed, heads, grad_mixed)
    for block in token_blocks(hidden):
        with torch.enable_grad(), autocast.again():
            x = hidden[:, block].detach().requires_grad_()
            some_heads = project_heads(attention, x)
        grad_hidden[:, block] += parameter_grads.add(some_heads, x, [grad[..., block, :] for grad in grad_heads])


def take_back_feed_forward(
    stream: torch.Tensor,
    feed_forward: FeedForward,
    hidden: torch.Tensor,
    generator: torch.Generator | None,
    grad_stream: torch.Tensor,
    grad_hidden: torch.Tensor,
    parameter_grads: ParameterGradients,
    autocast: Autocast,
) -> None:
    """The inverse of `add_feed_forward`, and its backward pass, as `take_back_attention`."""
    for block in token_blocks(hidden):
        with torch.enable_grad(), autocast.again():
            x = hidden[:, block].detach().requires_grad_()
            y = feed_forward(x, generator)
        stream[:, block] -= y.detach()
        grad_hidden[:, block] += parameter_grads.add([y], x, [grad_stream[:, block]])


def token_blocks(hidden: torch.Tensor) -> Iterator[slice]:
    """Consecutive pieces of n tokens, of hidden [B, n, d]."""
    for start in range(0, hidden.shape[1], BLOCK_TOKENS):
        yield slice(start, min(start + BLOCK_TOKENS, hidden.shape[1]))


def project_heads(attention: Attention, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, m, d] -> queries, keys and values, [B, H, m, D]."""
    if isinstance(attention, LocalAttention):
        return attention.project(hidden)
    query_key, value = attention.project(hidden)
    return query_key, normalised_keys(query_key), value


def _all_heads(attention: Attention, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`project_heads` of all tokens, without gradients, [B, H, n, D]."""
    tokens = hidden.shape[1]
    all_heads: tuple[torch.Tensor, ...] = ()
    for block in token_blocks(hidden):
        some_heads = project_heads(attention, hidden[:, block])
        if not all_heads:
            all_heads = tuple(x.new_empty(*x.shape[:2], tokens, x.shape[-1]) for x in some_heads)
        for x, some in zip(all_heads, some_heads, strict=True):
            x[..., block, :] = some
    return all_heads
