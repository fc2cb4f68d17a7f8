"""Chooses the next token of all running sessions at once.

Vectorised over the batch, with fixed shapes and nothing read back, so that it can be part of a captured decode step.
Random numbers are a function of (seed, step), so that a session gets the same ones alone, in any batch, and after a
restart.

Shapes: B sessions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reformer_core.sampling_params import SamplingParams


@dataclass(frozen=True)
class BatchSampling:
    """The sampling parameters of B sessions, one tensor a parameter."""

    temperature: torch.Tensor
    """float32 [B]."""
    repetition_penalty: torch.Tensor
    """float32 [B]."""
    top_k: torch.Tensor
    """int64 [B]; 0: off."""
    top_p: torch.Tensor
    """float32 [B]."""
    min_p: torch.Tensor
    """float32 [B]."""
    seed: torch.Tensor
    """int64 [B], the bits of the unsigned seeds."""
    greedy: bool
    """Whether every session is greedy: nothing has to be drawn."""
    ranked: bool
    """Whether any session has a top-k or top-p: only they need the vocabulary sorted."""
    penalised: bool
    """Whether any session has a repetition penalty."""

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> "BatchSampling":
        """Of B sessions' parameters, in their order."""
        smallest = torch.finfo(torch.float32).tiny  # a smaller penalty would be 0 in float32

        def numbers(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        return cls(
            temperature=numbers([p.temperature for p in params]),
            repetition_penalty=numbers([max(p.repetition_penalty, smallest) for p in params]),
            top_k=torch.tensor([min(p.top_k, 2**31) for p in params], dtype=torch.int64, device=device),
            top_p=numbers([p.top_p for p in params]),
            min_p=numbers([p.min_p for p in params]),
            seed=torch.tensor([_signed(p.seed) for p in params], dtype=torch.int64, device=device),
            greedy=all(p.temperature == 0 for p in params),
            ranked=any(p.top_k > 0 or p.top_p < 1 for p in params),
            penalised=any(p.repetition_penalty != 1 for p in params),
        )


@dataclass(frozen=True)
class Sampled:
    """The chosen tokens. Log-probabilities are natural and the model's own: before penalty, temperature and filters."""

    ids: torch.Tensor
    """int64 [B]."""
    logprobs: torch.Tensor
    """float32 [B]."""
    top: tuple[torch.Tensor, ...]
    """int64 [B, k] and float32 [B, k], the most likely tokens and their log-probabilities; nothing for k = 0."""


def sample(
    logits: torch.Tensor, batch: BatchSampling, steps: torch.Tensor, seen: torch.Tensor, top_logprobs: int = 0
) -> Sampled:
    """One token a session.

    The repetition penalty comes first, on the raw logits; then temperature, top-k, top-p and min-p, each on what the
    one before left, renormalised. At least the most likely token always stays.

    Args:
        logits: float32 [B, V].
        steps: int64 [B], how many tokens each session has generated: its random number's place.
        seen: bool [B, V], tokens that occurred in the prompt or the continuation.
        top_logprobs: k, how many of the most likely tokens to report; at most V.
    """
    logprobs = logits.log_softmax(dim=-1)
    penalised = _penalise(logits, batch.repetition_penalty, seen) if batch.penalised else logits
    ids = penalised.argmax(dim=-1)
    if not batch.greedy:
        ids = torch.where(batch.temperature == 0, ids, _draw(penalised, batch, uniform(batch.seed, steps)))
    top: tuple[torch.Tensor, ...] = ()
    if top_logprobs > 0:
        values, indices = logprobs.topk(min(top_logprobs, logits.shape[-1]), dim=-1)
        top = (indices, values)
    return Sampled(ids, logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), top)


def uniform(seed: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Random numbers in [0, 1), one for each (seed, step), both int64 [...]: float64 [...], the same on every device.

    Element `step` of the SplitMix64 sequence (Steele, Lea and Flood 2014) that begins at the scrambled seed; scrambled,
    because sequences from neighbouring seeds would be shifted copies of each other sooner or later.
    """
    bits = _mix(_mix(seed) + step * _signed(0x9E3779B97F4A7C15))
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def _penalise(logits: torch.Tensor, penalty: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Makes seen tokens less likely: positive logits are divided, negative ones multiplied."""
    factor = penalty.unsqueeze(-1)
    penalised = torch.where(logits > 0, logits / factor, logits * factor)
    return torch.where(seen, penalised, logits).clamp(max=torch.finfo(torch.float32).max)


def _draw(logits: torch.Tensor, batch: BatchSampling, uniform: torch.Tensor) -> torch.Tensor:
    """Filters, then draws by inverting the distribution function: [B, V] and [B] -> ids int64 [B].

    In float64: in float32 a distribution function over a large vocabulary would lose its rare tokens. In the order of
    the vocabulary, whether or not the batch has to be ranked: a session's token must not depend on the others.
    """
    temperature = torch.where(batch.temperature == 0, 1.0, batch.temperature).double().unsqueeze(-1)
    exact = logits.double()
    weights = torch.exp((exact - exact.amax(dim=-1, keepdim=True)) / temperature)  # 1 for the most likely
    if batch.ranked:
        weights = weights.masked_fill(_dropped_by_rank(logits, weights, batch), 0)
    weights = weights.masked_fill(weights < batch.min_p.unsqueeze(-1), 0)
    distribution = weights.cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * distribution[:, -1:]
    return (distribution <= target).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def _dropped_by_rank(logits: torch.Tensor, weights: torch.Tensor, batch: BatchSampling) -> torch.Tensor:
    """What top-k and top-p drop, bool [B, V]. Of equally likely tokens, those with the smaller ids stay."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(logits.shape[-1], device=logits.device)
    top_k, top_p = batch.top_k.unsqueeze(-1), batch.top_p.unsqueeze(-1)
    beyond_k = (top_k > 0) & (rank >= top_k)
    ordered = weights.gather(-1, order).masked_fill(beyond_k, 0)
    reached = ordered.cumsum(dim=-1)
    beyond_p = (top_p < 1) & (reached - ordered >= top_p * reached[:, -1:]) & (rank > 0)
    return torch.empty_like(beyond_p).scatter_(-1, order, beyond_k | beyond_p)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's scrambling of 64 bits; products wrap."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, places: int) -> torch.Tensor:
    """Shifts zeros in; torch's own shift of int64 copies the sign."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _signed(bits: int) -> int:
    """The int64 with the bits of this uint64."""
    return bits - 2**64 if bits >= 2**63 else bits
