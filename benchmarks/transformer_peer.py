"""A full-attention Transformer of the embedded model's size, as one builds them today, to compare with.

Pre-norm, rotary positions (arXiv 2104.09864), normalised queries and keys, GELU, tied embeddings; six layers of the
embedded model's widths. It sees a window of tokens at most.

Shapes: B batch, H heads, D head size, n tokens, d width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional

ROTARY_BASE = 10_000.0
RANDOM_TOKENS = 1024

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines
Cached = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class PeerConfig:
    """Sizes; the defaults come to 3.4 million parameters."""

    vocab_size: int = 1024
    layers: int = 6
    hidden_size: int = 256
    heads: int = 4
    feed_forward_size: int = 512
    window_tokens: int = 1024
    """Longest sequence."""
    dropout: float = 0.0
    """Of what each block adds and of the embeddings, in training."""


class KeyValueCache:
    """Keys and values of the tokens that were read, for up to so many."""

    def __init__(self, config: PeerConfig, tokens: int, dtype: torch.dtype = torch.float32) -> None:
        shape = (config.layers, 2, 1, config.heads, tokens, config.hidden_size // config.heads)
        self.tokens = 0
        self._entries = torch.empty(shape, dtype=dtype)

    def fill(self, tokens: int) -> None:
        """As if so many tokens had been read: random keys and values of the size that layer norms give them."""
        self.tokens = tokens
        entries = self._entries[..., :tokens, :]
        random = torch.randn_like(entries[..., :RANDOM_TOKENS, :])  # again and again: drawing gigabytes takes minutes
        for part in entries.split(RANDOM_TOKENS, dim=-2):
            part.copy_(random[..., : part.shape[-2], :])

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """New keys and values [1, H, m, D] of a layer -> those of all tokens [1, H, n, D]; count them with `tokens`."""
        end = self.tokens + key.shape[-2]
        entries = self._entries[layer, ..., :end, :]
        entries[0, ..., self.tokens :, :], entries[1, ..., self.tokens :, :] = key, value
        return entries[0], entries[1]


class Peer(nn.Module):
    """The Transformer."""

    def __init__(self, config: PeerConfig) -> None:
        """Random weights: each block begins by adding nothing to the residual stream."""
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, bias=False)
        nn.init.normal_(
            self.embeddings.weight, std=0.02
        )  # small, as they are the head: else each token predicts itself
        cosines, sines = _rotations(config.window_tokens, config.hidden_size // config.heads)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    @property
    def num_parameters(self) -> int:
        """Parameters in all."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, token_ids: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """Logits of the next token at each position: int64 [B, n] -> [B, n, vocab].

        Args:
            cache: of the tokens before these; either there are none yet, or this is one token. B is 1.
        """
        start = 0 if cache is None else cache.tokens
        places = slice(start, start + token_ids.shape[-1])
        hidden = functional.dropout(self.embeddings(token_ids), self.config.dropout, self.training)
        rotation = (self.get_buffer("cosines")[places], self.get_buffer("sines")[places])
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, rotation, None if cache is None else partial(cache.append, number))
        if cache is not None:
            cache.tokens = places.stop
        logits: torch.Tensor = functional.linear(self.final_norm(hidden), self.embeddings.weight)
        return logits


class _Layer(nn.Module):
    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.feed_forward_size
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.query_norm, self.key_norm = (nn.LayerNorm(width // config.heads, bias=False) for _ in range(2))
        self.output = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)
        self.inner = nn.Linear(width, inner, bias=False)
        self.outer = nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.outer.weight)

    def forward(self, hidden: torch.Tensor, rotation: Rotation, cached: Cached | None) -> torch.Tensor:
        attended = self._attend(self.attention_norm(hidden), rotation, cached)
        hidden = hidden + functional.dropout(attended, self.dropout, self.training)
        fed_forward = self.outer(functional.gelu(self.inner(self.feed_forward_norm(hidden))))
        return hidden + functional.dropout(fed_forward, self.dropout, self.training)

    def _attend(self, x: torch.Tensor, rotation: Rotation, cached: Cached | None) -> torch.Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )  # [B, H, n, D]
        query, key = (_rotate(y, rotation) for y in (self.query_norm(query), self.key_norm(key)))
        if cached is not None:
            key, value = cached(key, value)
        is_causal = query.shape[-2] == key.shape[-2]  # else it is one token, which sees all of them
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        attended: torch.Tensor = self.output(out.transpose(1, 2).flatten(2))
        return attended


def _rotations(positions: int, head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles, each [positions, D / 2]."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_size, 2) / head_size)
    angles = torch.arange(positions).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turns the pairs (x[i], x[i + D / 2]) by their position's angles: [B, H, n, D] -> the same."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
