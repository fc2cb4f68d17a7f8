"""A model with less context than it has: without layers, or with a window of the last tokens.

Shapes: B batch, n tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from reformer_core import ReformerModel
from reformer_core.lsh_attention import LSHAttention
from reformer_core.reversible import run_layers


def lsh_layers(model: ReformerModel) -> dict[int, LSHAttention]:
    """The LSH attention blocks, by the number of their layer, from 0."""
    blocks = [(index, layer.attention) for index, layer in enumerate(model.reversible_layers)]
    return {index: block for index, block in blocks if isinstance(block, LSHAttention)}


@contextmanager
def silenced(model: ReformerModel, layers: Sequence[int]) -> Iterator[None]:
    """With the attention of these layers adding nothing to the residual stream; the feed-forward blocks stay."""
    outputs = [model.reversible_layers[index].attention.output for index in layers]
    weights = [output.weight.data for output in outputs]
    for output, weight in zip(outputs, weights, strict=True):
        output.weight.data = torch.zeros_like(weight)
    try:
        yield
    finally:
        for output, weight in zip(outputs, weights, strict=True):
            output.weight.data = weight


def logits_at(model: ReformerModel, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits of the next tokens: int64 [B, n] at true positions int64 [B, n] -> [B, n, vocab]."""
    hidden = model.embed(token_ids, positions)
    return model.logits(torch.cat(run_layers(model.reversible_layers, hidden, None), dim=-1))


@torch.inference_mode()
def windowed_log_probabilities(
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], token_ids: torch.Tensor, window: int, batch: int = 4
) -> torch.Tensor:
    """Natural-log probability of each token from the tokens shortly before it alone.

    Windows overlap by half, and each but the first counts for its second half only: a token has between half a window
    and a window before it.

    Args:
        logits: token ids and positions, int64 [B, window] each -> logits [B, window, vocab].
        token_ids: int64 [n].
        window: tokens a window, even.
        batch: windows at a time.

    Returns:
        float32 [n]; the first is nan.
    """
    scores = torch.full((len(token_ids),), torch.nan)
    for at, counted in _sliding_windows(len(token_ids), window, batch):
        rows = token_ids[at]
        log_probabilities = logits(rows, at)[:, :-1].log_softmax(dim=-1)
        found = log_probabilities.gather(-1, rows[:, 1:].unsqueeze(-1)).squeeze(-1)
        scores[at[:, 1:][counted]] = found[counted]
    return scores


def _sliding_windows(tokens: int, window: int, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Positions of windows, int64 [B, window], and which of all but the first count, bool [B, window - 1].

    Each position of the text but the first counts once. A text shorter than a window is one window; the last window
    is moved back to the text's end.
    """
    window = min(window, tokens)
    last = tokens - window
    starts = torch.tensor([*range(0, last, window // 2), last] if last else [0])
    counted_from = torch.cat([torch.tensor([1]), starts[:-1] + window])
    for some, first in zip(starts.split(batch), counted_from.split(batch), strict=True):
        at = some.unsqueeze(-1) + torch.arange(window)
        yield at, at[:, 1:] >= first.unsqueeze(-1)
