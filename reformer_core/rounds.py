"""Attention over the hash rounds, one after the other, forward and backward: memory doesn't grow with their number.

Shapes: B batch, H heads, D head size, R hash rounds, L chunk length, n tokens, N padded tokens.
"""

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn

from reformer_core.window_attention import attend_slots, attend_slots_backward


@dataclass(frozen=True)
class SlotLayout:
    """How sorted slots are cut into chunks, and the dropout of attention weights."""

    length: int
    """Slots a chunk, L."""
    before: int
    """Chunks before its own that a query sees."""
    shared_qk: bool
    """Whether keys are the normalised queries, so that a query's own key is masked."""
    dropout_prob: float = 0.0
    generator: torch.Generator | None = None
    """None: no dropout."""


def attend_rounds(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor, layout: SlotLayout
) -> torch.Tensor:
    """Attention of all tokens, the rounds combined by their log-sum-exp; differentiable.

    Args:
        query, key, value: [B, H, n, D].
        order: int64 [B, H, R, N], slot -> position a round; n and more is padding.

    Returns:
        [B, H, n, D].
    """
    out = _AttendRounds.apply(query, key, value, order, layout)  # type: ignore[no-untyped-call]  # torch's own
    return cast(torch.Tensor, out)


def combine(
    out: torch.Tensor, peak: torch.Tensor, total: torch.Tensor, more_out: torch.Tensor, more_log_sum_exp: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of a running softmax over rounds.

    Args:
        out: [..., D], the sum of the outputs so far, each weighted by exp(log-sum-exp - peak).
        peak: [...], the largest log-sum-exp so far, -inf before the first.
        total: [...], the sum of the weights so far.
        more_out: [..., D], one more round's outputs.
        more_log_sum_exp: [...], one more round's log-sum-exps.

    Returns:
        out, peak and total with that round.
    """
    new_peak = torch.maximum(peak, more_log_sum_exp)
    share, more = torch.exp(peak - new_peak), torch.exp(more_log_sum_exp - new_peak)
    new_out = (out * share.unsqueeze(-1) + more_out * more.unsqueeze(-1)).to(out.dtype)
    return new_out, new_peak, total * share + more


class CombinedRounds:
    """Attention over the windows of all rounds, from that over each: a running softmax over the log-sum-exps."""

    def __init__(self, out: torch.Tensor, log_sum_exp: torch.Tensor) -> None:
        """Begins with the first round's outputs [..., D] and log-sum-exps [...]."""
        self.out, self._peak, self._total = out, log_sum_exp, torch.ones_like(log_sum_exp)

    def add(self, out: torch.Tensor, log_sum_exp: torch.Tensor) -> None:
        """One more round's outputs [..., D] and log-sum-exps [...]."""
        self.out, self._peak, self._total = combine(self.out, self._peak, self._total, out, log_sum_exp)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs [..., D] and log-sum-exps, float32 [...], of all rounds.

        Scaled by the log-sum-exp as it is rounded, not by the total: that is what the released models do to a token
        that sees only itself, whose log-sum-exp is about -1e5 and as coarse as 1/128.
        """
        log_sum_exp = self._peak + self._total.log()
        return (self.out * torch.exp(self._peak - log_sum_exp).unsqueeze(-1)).to(self.out.dtype), log_sum_exp


def gather_tokens(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x [..., N, D] at positions int64 [..., m] -> [..., m, D]."""
    rows = x.reshape(-1, x.shape[-1]).index_select(0, _row_numbers(positions, x.shape[-2]))
    return rows.view(*positions.shape, x.shape[-1])


def add_at_tokens(x: torch.Tensor, positions: torch.Tensor, more: torch.Tensor) -> None:
    """Adds more [..., m, D] to the contiguous x [..., N, D], in place, at positions int64 [..., m]."""
    x.view(-1, x.shape[-1]).index_add_(0, _row_numbers(positions, x.shape[-2]), more.reshape(-1, x.shape[-1]))


class _Context(Protocol):
    """What autograd's context object holds between the two passes."""

    layout: SlotLayout
    generator_state: torch.Tensor | None
    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class _AttendRounds(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        order: torch.Tensor,
        layout: SlotLayout,
    ) -> torch.Tensor:
        generator = layout.generator
        ctx.layout, ctx.generator_state = layout, None if generator is None else generator.get_state()
        tokens = query.shape[-2]
        padded_query, padded_key, padded_value = (_pad(x, order) for x in (query, key, value))
        combined: CombinedRounds | None = None
        for slots, query_slots in _ring(order, layout):
            round_out, log_sum_exp = attend_slots(
                gather_tokens(padded_query, query_slots),
                gather_tokens(padded_key, slots),
                gather_tokens(padded_value, slots),
                slots,
                length=layout.length,
                before=layout.before,
                shared_qk=layout.shared_qk,
                dropout_prob=layout.dropout_prob,
                generator=generator,
            )
            slot_of = _inverse(query_slots)[..., :tokens]
            by_token = gather_tokens(round_out, slot_of), log_sum_exp.gather(-1, slot_of)
            if combined is None:
                combined = CombinedRounds(*by_token)
            else:
                combined.add(*by_token)
        assert combined is not None  # there is always a round
        out, total = combined.finish()
        ctx.save_for_backward(query, key, value, order, out, total)
        return out

    @staticmethod
    def backward(ctx: _Context, grad_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        query, key, value, order, out, total = ctx.saved_tensors
        layout = ctx.layout
        generator = None
        if ctx.generator_state is not None:
            generator = torch.Generator(query.device)
            generator.set_state(ctx.generator_state)
        tokens = query.shape[-2]
        query, key, value, out, grad_out = (_pad(x, order) for x in (query, key, value, out, grad_out))
        total = nn.functional.pad(total, (0, order.shape[-1] - tokens))
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        for slots, query_slots in _ring(order, layout):
            round_grads = attend_slots_backward(
                gather_tokens(grad_out, query_slots),
                gather_tokens(query, query_slots),
                gather_tokens(key, slots),
                gather_tokens(value, slots),
                slots,
                gather_tokens(out, query_slots),
                total.gather(-1, query_slots),
                length=layout.length,
                before=layout.before,
                shared_qk=layout.shared_qk,
                dropout_prob=layout.dropout_prob,
                generator=generator,
            )
            for grad, at, more in zip(grads, (query_slots, slots, slots), round_grads, strict=True):
                add_at_tokens(grad, at, more)
        grad_query, grad_key, grad_value = (grad[..., :tokens, :] for grad in grads)
        return grad_query, grad_key, grad_value, None, None


def _ring(order: torch.Tensor, layout: SlotLayout) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A round's slots [B, H, b L + N], those seen before its first chunk included, and its own [B, H, N].

    All rounds lie on one axis, a ring: before a round's first chunk comes the last chunk of the round before.
    """
    ring, padded, reach = order.flatten(-2), order.shape[-1], layout.before * layout.length
    behind = torch.arange(-reach, 0, device=ring.device) % ring.shape[-1]
    ring = torch.cat([ring[..., behind], ring], dim=-1)
    starts = range(0, order.shape[-2] * padded, padded)
    return [
        (ring[..., start : start + padded + reach], ring[..., start + reach : start + reach + padded])
        for start in starts
    ]


def _inverse(order: torch.Tensor) -> torch.Tensor:
    """slot -> position, int64 [..., N], to position -> slot."""
    slots = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, slots)


def _pad(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """[B, H, n, D] -> [B, H, N, D], contiguous."""
    padding = order.shape[-1] - x.shape[-2]
    return nn.functional.pad(x, (0, 0, 0, padding)) if padding else x.contiguous()


def _row_numbers(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """Positions int64 [..., m] in sequences of N tokens -> rows of these sequences one below the other, [... m].

    Whole rows are copied many times faster than their elements.
    """
    first = torch.arange(positions.shape[:-1].numel(), device=positions.device) * tokens
    return (positions.reshape(-1, positions.shape[-1]) + first.unsqueeze(-1)).flatten()
