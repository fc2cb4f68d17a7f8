"""What LSH attention looks at: exact attention of a sample of queries, and how much of it the hash windows catch.

Shapes: H heads, R hash rounds, q sampled queries, n tokens, d width.
"""

from dataclasses import dataclass

import torch

from benchmarks.contexts import lsh_layers
from reformer_core import ReformerModel
from reformer_core.hashing import draw_rotations, hash_buckets
from reformer_core.lsh_attention import LSHAttention, normalised_keys, sorted_order

BANDS = (1, 17, 65, 1025, 16385)  # least distance of each band; the last has no end
ROUNDS = (1, 2, 4, 8)


@torch.no_grad()
def lsh_inputs(model: ReformerModel, token_ids: torch.Tensor) -> dict[int, torch.Tensor]:
    """What each LSH layer reads of a text, int64 [n]: the residual stream, [n, d]."""
    pieces: dict[int, list[torch.Tensor]] = {index: [] for index in lsh_layers(model)}

    def keep(index: int, hidden: torch.Tensor) -> None:
        pieces[index].append(hidden[0].clone())  # a long text comes in blocks; the stream is updated in place

    hooks = [
        block.norm.register_forward_pre_hook(lambda _, args, index=index: keep(index, args[0]))
        for index, block in lsh_layers(model).items()
    ]
    try:
        model(token_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return {index: torch.cat(blocks) for index, blocks in pieces.items()}


def full_weights(query_key: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Softmax over all earlier tokens, as if there were no windows: [H, n, D], positions [q] >= 1 -> [H, q, n]."""
    logits = query_key[:, queries] @ normalised_keys(query_key).transpose(-1, -2)
    earlier = torch.arange(query_key.shape[-2]) < queries.unsqueeze(-1)
    return logits.masked_fill(~earlier, -torch.inf).softmax(dim=-1)


def window_counts(buckets: torch.Tensor, queries: torch.Tensor, length: int, before: int) -> torch.Tensor:
    """How often a key is in a query's window in each round, the future included: twice at most, where rounds meet.

    Args:
        buckets: int64 [H, R, n], n a multiple of `length`.
        queries: positions, [q].
        length: slots a chunk.
        before: chunks before its own that a query sees.

    Returns:
        uint8 [H, R, q, n].
    """
    order = sorted_order(buckets, buckets.shape[-1])  # slot -> position
    slot = order.argsort(dim=-1)[..., queries]
    first = (slot // length - before) * length
    window = torch.arange((1 + before) * length)
    ring = order.flatten(-2)  # before a round's first chunk comes the round before's last
    start = torch.arange(buckets.shape[-2]).view(-1, 1) * buckets.shape[-1]
    places = ((first + start).unsqueeze(-1) + window) % ring.shape[-1]
    positions = ring.unsqueeze(1).unsqueeze(1).expand(*places.shape[:-1], -1).gather(-1, places)
    counts = torch.zeros(*slot.shape, buckets.shape[-1], dtype=torch.uint8)
    return counts.scatter_add_(-1, positions, torch.ones_like(positions, dtype=torch.uint8))


def paid_weights(weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """What LSH attention pays, from exact attention to all earlier tokens.

    Args:
        weights: [H, q, n].
        counts: [H, R, q, n], from `window_counts`; a key that is met twice counts twice.

    Returns:
        [H, q, n], each query's of sum 1; 0 for a query that sees no earlier key.
    """
    paid = weights * counts.sum(dim=1)
    return paid / paid.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(paid.dtype).tiny)


@dataclass(frozen=True)
class HeadReport:
    """What one head of one layer attends to, as shares of its attention, averaged over the queries."""

    layer: int
    head: int
    full_by_distance: list[float]
    """Of exact attention to all earlier tokens, a share a band of `BANDS`."""
    lsh_by_distance: list[float]
    """Of the attention that LSH really pays, with the model's rounds."""
    same_token: float
    """LSH attention to places with the same token."""
    after_same_token: float
    """LSH attention to places after the same token: what an induction head looks at."""
    same_token_chance: float
    """Share of earlier places with the same token: what attention without a preference would give."""
    perplexity: float
    """Over how many keys exact attention spreads: exp of its entropy, the median query's."""
    caught: dict[int, float]
    """Rounds -> share of exact attention that falls on keys in the windows."""
    caught_by_chance: dict[int, float]
    """The same for windows of random buckets."""
    buckets_used: float
    """Share of the buckets that hold a token, in an average round."""
    largest_bucket: float
    """Share of the tokens in the fullest bucket, in an average round."""
    alone: float
    """Queries that see no earlier key in any of the model's rounds."""


@torch.no_grad()
def head_reports(
    model: ReformerModel, token_ids: torch.Tensor, samples: int, generator: torch.Generator
) -> list[HeadReport]:
    """Of all heads of all LSH layers on one text, int64 [n], n a multiple of the LSH chunk length.

    The queries are drawn from the second half, so that each has half the text before it.
    """
    tokens = len(token_ids)
    queries = tokens // 2 + torch.randperm(tokens // 2, generator=generator)[:samples].sort().values
    inputs = lsh_inputs(model, token_ids)
    return [
        report
        for index, block in lsh_layers(model).items()
        for report in _layer_reports(index, block, inputs[index], token_ids, queries, generator)
    ]


def _layer_reports(
    index: int,
    block: LSHAttention,
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    queries: torch.Tensor,
    generator: torch.Generator,
) -> list[HeadReport]:
    config, query_key = block.config, block.project(hidden)[0]
    heads, tokens, head_size = query_key.shape
    weights = full_weights(query_key, queries)
    earlier = torch.arange(tokens) < queries.unsqueeze(-1)
    rotations = draw_rotations(config.hash_seed or 0, heads, head_size, max(ROUNDS), config.bucket_factors)
    buckets = hash_buckets(query_key, rotations, config.bucket_factors)  # [H, R, n]
    random_buckets = torch.randint(config.total_buckets, buckets.shape, generator=generator)
    shape = (config.lsh_attn_chunk_length, config.lsh_num_chunks_before)
    seen = window_counts(buckets, queries, *shape) > 0
    seen_by_chance = window_counts(random_buckets, queries, *shape) > 0
    lsh_weights = paid_weights(weights, window_counts(block.hash(query_key), queries, *shape))
    same = (token_ids == token_ids[queries].unsqueeze(-1)) & earlier  # [q, n]
    after_same = torch.cat([torch.zeros_like(same[:, :1]), same[:, :-1]], dim=-1) & earlier
    sizes = torch.stack([torch.bincount(row, minlength=config.total_buckets) for row in buckets.flatten(0, 1)])
    sizes = sizes.unflatten(0, buckets.shape[:2]).float()  # [H, R, buckets]
    entropy = -(weights * weights.clamp(min=1e-30).log()).sum(dim=-1)
    return [
        HeadReport(
            layer=index,
            head=head,
            full_by_distance=_by_distance(weights[head], queries),
            lsh_by_distance=_by_distance(lsh_weights[head], queries),
            same_token=_mean_share(lsh_weights[head], same),
            after_same_token=_mean_share(lsh_weights[head], after_same),
            same_token_chance=float((same.sum(dim=-1) / queries).mean()),
            perplexity=float(entropy[head].median().exp()),
            caught={rounds: _mean_share(weights[head], seen[head, :rounds].any(dim=0)) for rounds in ROUNDS},
            caught_by_chance={
                rounds: _mean_share(weights[head], seen_by_chance[head, :rounds].any(dim=0)) for rounds in ROUNDS
            },
            buckets_used=float((sizes[head] > 0).float().mean()),
            largest_bucket=float(sizes[head].amax(dim=-1).mean() / tokens),
            alone=float((lsh_weights[head].sum(dim=-1) == 0).float().mean()),
        )
        for head in range(heads)
    ]


def _mean_share(weights: torch.Tensor, where: torch.Tensor) -> float:
    """Attention [q, n] on the places `where`, bool [q, n], an average query's."""
    return float((weights * where).sum(dim=-1).mean())


def _by_distance(weights: torch.Tensor, queries: torch.Tensor) -> list[float]:
    distance = queries.unsqueeze(-1) - torch.arange(weights.shape[-1])
    ends = (*BANDS[1:], weights.shape[-1] + 1)
    return [_mean_share(weights, (distance >= low) & (distance < high)) for low, high in zip(BANDS, ends, strict=True)]
