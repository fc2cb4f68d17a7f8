"""LSH attention (paper, section 2): queries are keys, and each sees the tokens next to it in bucket order.

Here are the projections, the sorted windows of a full pass, and how hash rounds are combined; the windows of a token
that is appended to a cached document come from `bucket_index`.

Shapes: B batch, H heads, D head size, R hash rounds, L chunk length, n tokens, N padded tokens, d width.
"""

import torch
from torch import nn

from reformer_core.config import ReformerConfig
from reformer_core.dropout import dropout
from reformer_core.hashing import draw_rotations, hash_buckets
from reformer_core.linear import LayerNorm, Linear
from reformer_core.rounds import SlotLayout, attend_rounds


def key_norms(query_key: torch.Tensor) -> torch.Tensor:
    """Norms of the shared-QK vectors, [..., D] -> [...], at least float32: what makes a normalised key its query."""
    exact = torch.promote_types(query_key.dtype, torch.float32)
    norms = torch.linalg.vector_norm(query_key, dim=-1, dtype=exact)
    return torch.sqrt(norms.square() + 1e-6 * query_key.shape[-1])


def normalised_keys(query_key: torch.Tensor, norms: torch.Tensor | None = None) -> torch.Tensor:
    """Keys of the shared-QK vectors [..., D]: of length 1, so that no token draws more attention by its norm.

    The division by sqrt(D) is in it: published keys have length sqrt(D) before. `norms` are the `key_norms`, if known.
    """
    norms = key_norms(query_key) if norms is None else norms
    return (query_key / norms.unsqueeze(-1)).to(query_key.dtype)


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


class LSHAttention(nn.Module):
    """One LSH attention block, its layer norm included."""

    rotations: torch.Tensor

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.config = config
        inner = config.num_attention_heads * config.attention_head_size
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query_key = Linear(config.hidden_size, inner, bias=False)
        self.value = Linear(config.hidden_size, inner, bias=False)
        self.output = Linear(inner, config.hidden_size, bias=False)
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
        x = self.norm(hidden).to(self.value.weight.dtype)
        heads = (self.config.num_attention_heads, self.config.attention_head_size)
        query_key = self.query_key(x).unflatten(-1, heads).transpose(-2, -3)
        value = self.value(x).unflatten(-1, heads).transpose(-2, -3)
        return query_key, value

    def hash(self, query_key: torch.Tensor) -> torch.Tensor:
        """[..., H, n, D] -> buckets int64 [..., H, R, n]."""
        return hash_buckets(query_key, self.rotations, self.config.bucket_factors)

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
        buckets = self.hash(query_key) if buckets is None else buckets
        return self.merge(self.mix(query_key, normalised_keys(query_key), value, buckets, generator), generator)

    def mix(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        buckets: torch.Tensor | None,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """What tokens get from others: projected heads [B, H, n, D], hashed to int [B, H, R, n] -> [B, H, n, D]."""
        assert buckets is not None
        tokens = query.shape[-2]
        padded = self.config.padded_length(tokens)
        if padded <= self.config.lsh_attn_chunk_length:  # one chunk: everything sees everything, once
            order = torch.arange(tokens, device=buckets.device).expand(*query.shape[:-2], 1, tokens)
            length, before = tokens, 0
        else:
            order = sorted_order(buckets, padded)
            length, before = self.config.lsh_attn_chunk_length, self.config.lsh_num_chunks_before
        layout = SlotLayout(length, before, True, self.config.lsh_attention_probs_dropout_prob, generator)
        return attend_rounds(query, key, value, order, layout)

    def merge(self, mixed: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """The heads' outputs [B, H, n, D] -> [B, n, d]."""
        out = self.output(mixed.transpose(-2, -3).flatten(-2))
        return dropout(out, self.config.hidden_dropout_prob, generator)
