"""Local attention: each token sees its own chunk and the one before it, causally. Queries and keys are separate.

Shapes: B batch, H heads, D head size, L chunk length, n tokens, d width.
"""

import math

import torch
from torch import nn

from reformer_core.config import ReformerConfig
from reformer_core.dropout import dropout
from reformer_core.window_attention import attend_windows


class LocalAttention(nn.Module):
    """One local attention block, its layer norm included."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.config = config
        inner = config.num_attention_heads * config.attention_head_size
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = nn.Linear(config.hidden_size, inner, bias=False)
        self.key = nn.Linear(config.hidden_size, inner, bias=False)
        self.value = nn.Linear(config.hidden_size, inner, bias=False)
        self.output = nn.Linear(inner, config.hidden_size, bias=False)

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Residual stream [..., n, d] -> queries, keys (scaled) and values, [..., H, n, D]."""
        x = self.norm(hidden)
        heads = (self.config.num_attention_heads, self.config.attention_head_size)
        query, key, value = (
            linear(x).unflatten(-1, heads).transpose(-2, -3) for linear in (self.query, self.key, self.value)
        )
        return query, key / math.sqrt(self.config.attention_head_size), value

    def forward(
        self, hidden: torch.Tensor, buckets: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Full attention of a batch: [B, n, d] -> [B, n, d], without the residual; `buckets` is for LSH only."""
        query, key, value = self.project(hidden)
        history = key[..., :0, :]
        out = self.attend_chunks(query, (history, history), key, value, generator)
        out = self.output(out.transpose(-2, -3).flatten(-2))
        return dropout(out, self.config.hidden_dropout_prob, generator)

    def attend_chunks(
        self,
        query: torch.Tensor,
        history: tuple[torch.Tensor, torch.Tensor],
        key: torch.Tensor,
        value: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Attention of consecutive tokens that begin at a chunk boundary.

        Args:
            query: [..., H, n, D], as key and value.
            history: keys and values [..., H, h, D] right before them, h whole chunks, as many as a window needs
                or fewer at the beginning of a sequence.

        Returns:
            [..., H, n, D].
        """
        length, before = self.config.local_attn_chunk_length, self.config.local_num_chunks_before
        tokens, device = query.shape[-2], query.device
        missing, padding = before * length - history[0].shape[-2], -tokens % length
        key = nn.functional.pad(torch.cat([history[0], key], dim=-2), (0, 0, missing, padding))
        value = nn.functional.pad(torch.cat([history[1], value], dim=-2), (0, 0, missing, padding))
        query = nn.functional.pad(query, (0, 0, 0, padding)).unflatten(-2, (-1, length))
        position = torch.arange(-before * length, tokens + padding, device=device)
        absent = position < missing - before * length  # before the sequence's first token
        key_position = position.masked_fill(absent, tokens + padding)
        window = (1 + before) * length
        out, _ = attend_windows(
            query,
            key.unfold(-2, window, length).transpose(-1, -2),
            value.unfold(-2, window, length).transpose(-1, -2),
            position[before * length :].unflatten(-1, (-1, length)),
            key_position.unfold(-1, window, length),
            shared_qk=False,
            dropout_prob=self.config.local_attention_probs_dropout_prob,
            generator=generator,
        )
        return out.flatten(-3, -2)[..., :tokens, :]
