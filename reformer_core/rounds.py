"""Attention over the hash rounds, one after the other, forward and backward: memory doesn't grow with their number.

Shapes: B batch, H heads, D head size, R hash rounds, L chunk length, n tokens, N padded tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn

from reformer_core.window_attention import attend_slots, attend_slots_backward

# Of all heads together: few enough that what is computed of them stays in a CPU's cache; enough for all of a GPU.
CPU_PART_SLOTS, GPU_PART_SLOTS = 2**14, 2**18


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

    def __init__(self, like: torch.Tensor) -> None:
        """For outputs in the shape [..., N, D] and the dtype of `like`."""
        self.out = torch.zeros_like(like)
        exact = torch.promote_types(like.dtype, torch.float32)
        self._peak = like.new_full(like.shape[:-1], -torch.inf, dtype=exact)
        self._total = torch.zeros_like(self._peak)

    def add(self, positions: torch.Tensor, out: torch.Tensor, log_sum_exp: torch.Tensor) -> None:
        """One round's outputs [..., m, D] and log-sum-exps [..., m] of the tokens at positions int64 [..., m]."""
        before = gather_tokens(self.out, positions)
        peak, total = self._peak.gather(-1, positions), self._total.gather(-1, positions)
        out, peak, total = combine(before, peak, total, out, log_sum_exp)
        _flat_rows(self.out).index_copy_(0, _row_numbers(positions, self.out.shape[-2]), _flat_rows(out))
        self._peak.scatter_(-1, positions, peak)
        self._total.scatter_(-1, positions, total)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs [..., N, D] and log-sum-exps, float32 [..., N], of all rounds.

        Scaled by the log-sum-exp as it is rounded, not by the total: that is what the released models do to a token
        that sees only itself, whose log-sum-exp is about -1e5 and as coarse as 1/128.
        """
        log_sum_exp = self._peak + self._total.log()
        return self.out.mul_(torch.exp(self._peak - log_sum_exp).unsqueeze(-1)), log_sum_exp


def gather_tokens(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x [..., N, D] at positions int64 [..., m] -> [..., m, D]."""
    rows = _flat_rows(x).index_select(0, _row_numbers(positions, x.shape[-2]))
    return rows.view(*positions.shape, x.shape[-1])


def add_at_tokens(x: torch.Tensor, positions: torch.Tensor, more: torch.Tensor) -> None:
    """Adds more [..., m, D] to the contiguous x [..., N, D], in place, at positions int64 [..., m]."""
    _flat_rows(x).index_add_(0, _row_numbers(positions, x.shape[-2]), _flat_rows(more))


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
        combined = CombinedRounds(padded_value)
        for slots, query_slots in _parts(order, layout):
            out, log_sum_exp = attend_slots(
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
            combined.add(query_slots, out, log_sum_exp)
        out, total = combined.finish()
        ctx.save_for_backward(query, key, value, order, out, total)
        return out[..., :tokens, :]

    @staticmethod
    def backward(ctx: _Context, grad_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        query, key, value, order, out, total = ctx.saved_tensors
        layout = ctx.layout
        generator = None
        if ctx.generator_state is not None:
            generator = torch.Generator(query.device)
            generator.set_state(ctx.generator_state)
        tokens = query.shape[-2]
        query, key, value, grad_out = (_pad(x, order) for x in (query, key, value, grad_out))
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        for slots, query_slots in _parts(order, layout):
            more_grads = attend_slots_backward(
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
            for grad, at, more in zip(grads, (query_slots, slots, slots), more_grads, strict=True):
                add_at_tokens(grad, at, more)
        grad_query, grad_key, grad_value = (grad[..., :tokens, :] for grad in grads)
        return grad_query, grad_key, grad_value, None, None


def _parts(order: torch.Tensor, layout: SlotLayout) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Round after round, some chunks at a time: slots [B, H, b L + m], and those without the b chunks before.

    All rounds lie on one axis, a ring: before a round's first chunk comes the last chunk of the round before.
    """
    ring, padded, reach = order.flatten(-2), order.shape[-1], layout.before * layout.length
    sequences = order.shape[:-2].numel()
    most = GPU_PART_SLOTS if ring.device.type == "cuda" else CPU_PART_SLOTS
    step = max(most // (sequences * layout.length), 1) * layout.length
    for round_ in range(order.shape[-2]):
        for first in range(0, padded, step):
            start, stop = round_ * padded + first, round_ * padded + min(first + step, padded)
            slots = ring[..., torch.arange(start - reach, stop, device=ring.device) % ring.shape[-1]]
            yield slots, slots[..., reach:]


def _pad(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """[B, H, n, D] -> [B, H, N, D], contiguous."""
    padding = order.shape[-1] - x.shape[-2]
    return nn.functional.pad(x, (0, 0, 0, padding)) if padding else x.contiguous()


def _flat_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., D] -> [..., D] with one leading dimension."""
    return x.reshape(-1, x.shape[-1])


def _row_numbers(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """Positions int64 [..., m] in sequences of N tokens -> rows of these sequences one below the other, [... m].

    Whole rows are copied many times faster than their elements.
    """
    first = torch.arange(positions.shape[:-1].numel(), device=positions.device) * tokens
    return (positions.reshape(-1, positions.shape[-1]) + first.unsqueeze(-1)).flatten()
