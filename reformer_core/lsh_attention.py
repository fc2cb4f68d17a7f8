"""LSH attention (paper, section 2): queries are keys, and each sees the tokens next to it in bucket order.

Here are the projections, the sorted windows of a full pass, and how hash rounds are combined; the windows of a token
that is appended to a cached document come from `bucket_index`.

Shapes: B batch, H heads, D head size, R hash rounds, L chunk length, n tokens, N padded tokens, d width.
"""

import math

import torch
from torch import nn

from reformer_core.config import ReformerConfig
from reformer_core.dropout import dropout
from reformer_core.hashing import draw_rotations, hash_buckets
from reformer_core.window_attention import attend_windows


def normalised_keys(query_key: torch.Tensor) -> torch.Tensor:
    """Keys of the shared-QK vectors: of one length, so that no token draws more attention by its norm, over sqrt(D)."""
    x = query_key.float()
    scale = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6) / math.sqrt(x.shape[-1])
    return (x * scale).to(query_key.dtype)


def sorted_order(buckets: torch.Tensor, padded: int) -> torch.Tensor:
    """Positions in bucket order, a stable sort a round; padding comes last in every round.

    Args:
        buckets: int [..., n].
        padded: N, at least n.

    Returns:
        int64 [..., N]: slot -> position, n and more for padding.
    """
    tokens = buckets.shape[-1]
    order = torch.sort(buckets, dim=-1, stable=True).indices
    padding = torch.arange(tokens, padded, device=order.device).expand(*order.shape[:-1], padded - tokens)
    return torch.cat([order, padding], dim=-1)


def combine_rounds(
    out: torch.Tensor, log_sum_exp: torch.Tensor, more_out: torch.Tensor, more_log_sum_exp: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two sets of windows, from the attention over each; outs [..., D], log-sum-exps float32 [...]."""
    total = torch.logaddexp(log_sum_exp, more_log_sum_exp)
    share = torch.exp(log_sum_exp - total).unsqueeze(-1)
    more_share = torch.exp(more_log_sum_exp - total).unsqueeze(-1)
    return (out * share + more_out * more_share).to(out.dtype), total


class LSHAttention(nn.Module):
    """One LSH attention block, its layer norm included."""

    rotations: torch.Tensor

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.config = config
        inner = config.num_attention_heads * config.attention_head_size
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query_key = nn.Linear(config.hidden_size, inner, bias=False)
        self.value = nn.Linear(config.hidden_size, inner, bias=False)
        self.output = nn.Linear(inner, config.hidden_size, bias=False)
        # The same seed gives the same draw in every layer, as in Hugging Face's model.
        rotations = draw_rotations(
            config.hash_seed or 0,
            config.num_attention_heads,
            config.attention_head_size,
            config.num_hashes,
            config.bucket_factors,
        )
        self.register_buffer("rotations", rotations, persistent=False)

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual stream [..., n, d] -> shared queries and keys (unnormalised), and values, [..., H, n, D]."""
        x = self.norm(hidden)
        heads = (self.config.num_attention_heads, self.config.attention_head_size)
        query_key = self.query_key(x).unflatten(-1, heads).transpose(-2, -3)
        value = self.value(x).unflatten(-1, heads).transpose(-2, -3)
        return query_key, value

    def hash(self, query_key: torch.Tensor) -> torch.Tensor:
        """[..., H, n, D] -> buckets int64 [..., H, R, n]."""
        return hash_buckets(query_key, self.rotations, self.config.bucket_factors)

    def buckets(self, hidden: torch.Tensor) -> torch.Tensor:
        """Buckets that `forward` uses for these inputs, int64 [B, H, R, n]."""
        return self.hash(self.project(hidden)[0])

    def forward(
        self, hidden: torch.Tensor, buckets: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Full attention of a batch: [B, n, d] -> [B, n, d], without the residual.

        Args:
            hidden: the residual stream, [B, n, d].
            buckets: [B, H, R, n] of an earlier pass, to repeat it exactly.
            generator: randomness of the dropout; None for inference.
        """
        query_key, value = self.project(hidden)
        tokens = query_key.shape[-2]
        padded = self.config.padded_length(tokens)
        if padded <= self.config.lsh_attn_chunk_length:
            position = torch.arange(tokens, device=hidden.device)
            out, _ = self._attend(query_key, normalised_keys(query_key), value, position, position, generator)
        else:
            buckets = self.hash(query_key) if buckets is None else buckets
            out = self._attend_sorted(query_key, value, sorted_order(buckets, padded), generator)
        out = self.output(out.transpose(-2, -3).flatten(-2))
        return dropout(out, self.config.hidden_dropout_prob, generator)

    def _attend_sorted(
        self, query_key: torch.Tensor, value: torch.Tensor, order: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Chunks of the sorted tokens see themselves and the chunk before; order [B, H, R, N] -> [B, H, n, D]."""
        tokens, padded = query_key.shape[-2], order.shape[-1]
        pad = (0, 0, 0, padded - tokens)
        query_key = nn.functional.pad(query_key, pad)
        value = nn.functional.pad(value, pad)
        key = normalised_keys(query_key)
        length, before = self.config.lsh_attn_chunk_length, self.config.lsh_num_chunks_before
        rounds = order.shape[-2]
        # All rounds lie on one axis, a ring: before a round's first chunk comes the last chunk of the round before.
        ring = order.flatten(-2)
        ring = torch.cat([ring[..., ring.shape[-1] - before * length :], ring], dim=-1)
        out = torch.zeros_like(value[..., :tokens, :])
        total = torch.full(out.shape[:-1], -torch.inf, device=out.device)
        for round_ in range(rounds):
            slots = ring[..., round_ * padded : (round_ + 1) * padded + before * length]
            query_slots = slots[..., before * length :]
            round_out, log_sum_exp = self._attend(
                gather_tokens(query_key, query_slots).unflatten(-2, (-1, length)),
                windows(gather_tokens(key, slots), length, before),
                windows(gather_tokens(value, slots), length, before),
                query_slots.unflatten(-1, (-1, length)),
                slots.unfold(-1, (1 + before) * length, length),
                generator,
            )
            slot_of = torch.empty_like(query_slots).scatter_(
                -1, query_slots, torch.arange(padded, device=order.device).expand_as(query_slots)
            )[..., :tokens]
            round_out = gather_tokens(round_out.flatten(-3, -2), slot_of)
            out, total = combine_rounds(out, total, round_out, log_sum_exp.flatten(-2).gather(-1, slot_of))
        return out

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_position: torch.Tensor,
        key_position: torch.Tensor,
        generator: torch.Generator | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return attend_windows(
            query,
            key,
            value,
            query_position,
            key_position,
            shared_qk=True,
            dropout_prob=self.config.lsh_attention_probs_dropout_prob,
            generator=generator,
        )


def gather_tokens(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x [..., N, D] at positions int64 [..., m] -> [..., m, D]."""
    return x.gather(-2, positions.unsqueeze(-1).expand(*positions.shape, x.shape[-1]))


def windows(x: torch.Tensor, length: int, before: int) -> torch.Tensor:
    """Overlapping windows, a view: [..., (before + c) * L, D] -> [..., c, (1 + before) * L, D]."""
    return x.unfold(-2, (1 + before) * length, length).transpose(-1, -2)
