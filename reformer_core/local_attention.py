"""Local attention: each token sees its own chunk and the one before it, causally. Queries and keys are separate.

Shapes: B batch, H heads, D head size, L chunk length, n tokens, d width.
"""

import math

import torch
from torch import nn

from reformer_core.config import ReformerConfig
from reformer_core.dropout import dropout
from reformer_core.linear import LayerNorm, Linear, unrounded
from reformer_core.rounds import SlotLayout, attend_rounds
from reformer_core.window_attention import attend_slots


class LocalAttention(nn.Module):
    """One local attention block, its layer norm included."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.config = config
        inner = config.num_attention_heads * config.attention_head_size
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = Linear(config.hidden_size, inner, bias=False)
        self.key = Linear(config.hidden_size, inner, bias=False)
        self.value = Linear(config.hidden_size, inner, bias=False)
        self.output = Linear(inner, config.hidden_size, bias=False)

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Residual stream [..., n, d] -> queries, keys (scaled) and values, [..., H, n, D]."""
        x, scale = self.norm(hidden), math.sqrt(self.config.attention_head_size)
        if x.dtype == self.value.weight.dtype:
            query, key = self.query(x), self.key(x) / scale
        else:
            # Float32, in a float16 model. Heads that look a fixed distance back are sharp: rounding what they compare
            # is much of such a model's error.
            query, key = unrounded(x, self.query.weight), unrounded(x / scale, self.key.weight)
        value = self.value(x.to(self.value.weight.dtype))
        heads = (self.config.num_attention_heads, self.config.attention_head_size)
        query, key, value = (y.unflatten(-1, heads).transpose(-2, -3) for y in (query, key, value))
        return query, key, value

    def forward(
        self, hidden: torch.Tensor, buckets: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Full attention of a batch: [B, n, d] -> [B, n, d], without the residual; `buckets` is for LSH only."""
        return self.merge(self.mix(*self.project(hidden), None, generator), generator)

    def mix(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        buckets: torch.Tensor | None,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """What tokens get from others: projected heads [B, H, n, D] -> [B, H, n, D]; `buckets` is for LSH only."""
        length, before = self.config.local_attn_chunk_length, self.config.local_num_chunks_before
        tokens = query.shape[-2]
        # One "round" in the order of positions. Before the first chunk come the last ones: with so many chunks, all of
        # them are in the future, and no token is seen twice.
        chunks = max(-(-tokens // length), 1 + before)
        order = torch.arange(chunks * length, device=query.device).expand(*query.shape[:-2], 1, -1)
        layout = SlotLayout(length, before, False, self.config.local_attention_probs_dropout_prob, generator)
        return attend_rounds(query, key, value, order, layout)

    def merge(self, mixed: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """The heads' outputs [B, H, n, D] -> [B, n, d]."""
        out = self.output(mixed.transpose(-2, -3).flatten(-2))
        return dropout(out, self.config.hidden_dropout_prob, generator)

    def attend_slice(self, hidden: torch.Tensor, start: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention of a slice of one long sequence, [m, d] -> [m, d], without the residual.

        Args:
            hidden: the residual stream from position `start` on, which begins a chunk.
            keys, values: [H, W, D], of the W positions before; position p lies at p % W. Updated to the slice's end.
        """
        length, before = self.config.local_attn_chunk_length, self.config.local_num_chunks_before
        query, *projected = self.project(hidden)  # [H, m, D]
        tokens, padding = len(hidden), -len(hidden) % length
        end, reach, window = start + tokens + padding, before * length, self.config.local_window
        # One chunk's positions stand for all, but near the beginning (start < reach), before which there is nothing.
        position = torch.arange(start - reach, end if start < reach else start + length, device=hidden.device)
        zeros, seen = query.new_zeros(len(query), padding, query.shape[-1]), []
        for ring, new in zip((keys, values), projected, strict=True):
            window_and_slice = torch.cat([ring.roll(-(start % window), dims=-2), new, zeros], dim=-2)
            newest = window_and_slice[:, tokens : tokens + window]
            ring.copy_(newest.roll((start + tokens) % window, dims=-2))
            seen.append(window_and_slice[:, window - reach :])
        padded_key, padded_value = seen
        out, _ = attend_slots(
            torch.cat([query, zeros], dim=-2) if padding else query,
            padded_key,
            padded_value,
            torch.where(position < 0, end, position).unsqueeze(0),  # nothing is seen before the beginning
            length=length,
            before=before,
            shared_qk=False,
            has_backward=False,
        )
        return self.merge(out[:, :tokens], None)
