"""Attention written out plainly, differentiable by autograd alone: what the real one must equal."""

import torch

from reformer_core.dropout import dropout
from reformer_core.rounds import SlotLayout
from reformer_core.window_attention import FUTURE, SELF


def naive_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_position: torch.Tensor,
    key_position: torch.Tensor,
    shared_qk: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One query [D], keys and values [w, D], positions [] and [w] -> output [D] and log-sum-exp []."""
    logits = []
    for one_key, position in zip(key, key_position.tolist(), strict=True):
        if position > query_position:
            logits.append(query.new_tensor(FUTURE))
        elif shared_qk and position == query_position:
            logits.append(query.new_tensor(SELF))
        else:
            logits.append((query * one_key).sum())
    weights = torch.softmax(torch.stack(logits), dim=0)
    return (weights.unsqueeze(-1) * value).sum(dim=0), torch.logsumexp(torch.stack(logits), dim=0)


def naive_rounds(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor, layout: SlotLayout
) -> torch.Tensor:
    """`attend_rounds` by whole matrices, a chunk at a time; it draws dropout in the same order and shapes."""
    tokens, length = query.shape[-2], layout.length
    rounds, padded = order.shape[-2:]
    query, key, value = (torch.nn.functional.pad(x, (0, 0, 0, padded - tokens)) for x in (query, key, value))
    ring = order.flatten(-2)  # [B, H, R N]
    ring_query, ring_key, ring_value = (
        x.gather(-2, ring.unsqueeze(-1).expand(*ring.shape, x.shape[-1])) for x in (query, key, value)
    )
    chunks, total = padded // length, rounds * padded
    outs, log_sum_exps = [], []
    for round_ in range(rounds):
        keep = torch.ones(*query.shape[:2], chunks, length, (1 + layout.before) * length, dtype=query.dtype)
        keep = dropout(keep, layout.dropout_prob, layout.generator)
        for chunk in range(chunks):
            first = round_ * padded + chunk * length
            own = torch.arange(first, first + length)
            seen = torch.arange(first - layout.before * length, first + length) % total
            behind, ahead = ring[..., own].unsqueeze(-1), ring[..., seen].unsqueeze(-2)
            logits = ring_query[..., own, :] @ ring_key[..., seen, :].transpose(-1, -2)
            logits = logits.masked_fill(ahead > behind, FUTURE)
            logits = logits.masked_fill(ahead == behind, SELF) if layout.shared_qk else logits
            log_sum_exp = logits.logsumexp(dim=-1, keepdim=True)
            weights = torch.exp(logits - log_sum_exp) * keep[:, :, chunk]
            outs.append(weights @ ring_value[..., seen, :])
            log_sum_exps.append(log_sum_exp)
    out, log_sum_exp = torch.cat(outs, dim=-2), torch.cat(log_sum_exps, dim=-2)  # [B, H, R N, D] and [B, H, R N, 1]
    slots = torch.argsort(order, dim=-1)[..., :tokens] + torch.arange(rounds).view(-1, 1) * padded  # [B, H, R, n]
    slots = slots.flatten(-2).unsqueeze(-1)
    out = out.gather(-2, slots.expand(*slots.shape[:-1], out.shape[-1])).unflatten(-2, (rounds, tokens))
    shares = torch.softmax(log_sum_exp.gather(-2, slots).unflatten(-2, (rounds, tokens)), dim=-3)
    return (out * shares).sum(dim=-3)
