"""Other people's models that decode and score what ours does.

- transformers' Reformer, with the very same weights; a token is decoded with its cache of buckets and hidden states.
- A Transformer of the same size, full attention by torch's `scaled_dot_product_attention`, with a cache of keys and
  values (`transformer_peer`).
"""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers.models.reformer.modeling_reformer import ReformerDynamicCache

from benchmarks.transformer_peer import KeyValueCache, Peer, PeerConfig
from reformer_core import ReformerModel
from reformer_core.layer_passes import add_attention, add_feed_forward, empty_buckets
from reformer_core.lsh_attention import LSHAttention

Step = Callable[[int], torch.Tensor]
"""Appends a token id; gives the logits of the next token, float32 [vocab]."""


def load_transformers(directory: Path, dtype: torch.dtype) -> transformers.ReformerModelWithLMHead:
    """transformers' model of a checkpoint whose `hash_seed` is set, for inference, which is the mode it comes in.

    Without a seed, transformers would hash each new token by other rotations than the cached ones.
    """
    model: transformers.ReformerModelWithLMHead = transformers.ReformerModelWithLMHead.from_pretrained(directory)
    assert model.config.hash_seed is not None
    model.to(dtype)  # type: ignore[arg-type]  # `from_pretrained(dtype=…)` would leave the position embeddings as they are
    model.requires_grad_(False)
    return model


@torch.inference_mode()
def transformers_cache(model: ReformerModel, token_ids: torch.Tensor, dtype: torch.dtype) -> ReformerDynamicCache:
    """The cache that transformers' forward pass over token ids int64 [n] leaves, computed by our layers.

    Its own pass holds all windows of a layer at once; ours is equal but for rounding. n has to be a multiple of
    the chunk lengths, so that nothing is padded.
    """
    config = model.config
    assert len(token_ids) % config.chunk_multiple == 0
    states: list[tuple[torch.Tensor, torch.Tensor]] = []  # buckets, none for local layers, and hidden states
    stream1 = model.embed(token_ids[None], torch.arange(len(token_ids)))
    stream2 = stream1.clone()
    for layer in model.reversible_layers:
        buckets = empty_buckets(layer.attention, stream2)
        cached = layer.attention.norm(stream2).to(dtype)
        add_attention(stream1, layer.attention, stream2, buckets, None)
        add_feed_forward(stream2, layer.feed_forward, stream1, None)
        if isinstance(layer.attention, LSHAttention):
            assert buckets is not None
            offsets = torch.arange(config.num_hashes).unsqueeze(-1) * config.total_buckets  # a round has its own
            states.append((buckets.long() + offsets, cached))
        else:
            states.append((torch.empty(0), cached))
    return ReformerDynamicCache(states)


def transformers_step(model: transformers.ReformerModelWithLMHead, cache: ReformerDynamicCache) -> Step:
    """Decoding as `generate` does it."""

    @torch.inference_mode()
    def step(token_id: int) -> torch.Tensor:
        output = model(input_ids=torch.tensor([[token_id]]), past_buckets_states=cache, use_cache=True)
        logits: torch.Tensor = output.logits[0, -1].float()
        return logits

    return step


def full_attention_model(vocab_size: int, tokens: int, dtype: torch.dtype) -> Peer:
    """The Transformer, with positions for so many tokens; its random weights make no difference to its speed."""
    torch.manual_seed(0)
    return Peer(PeerConfig(vocab_size=vocab_size, window_tokens=tokens)).to(dtype).eval().requires_grad_(False)


def full_attention_step(model: Peer, cache: KeyValueCache) -> Step:
    """Decoding with keys and values cached."""

    @torch.inference_mode()
    def step(token_id: int) -> torch.Tensor:
        logits: torch.Tensor = model(torch.tensor([[token_id]]), cache)[0, -1].float()
        return logits

    return step
