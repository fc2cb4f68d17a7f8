"""What a notebook shows of scores: figures, a sparkline and a few passages, without a script."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reformer_client.report.passages import Passage, find_passages
from reformer_client.report.surprise import Surprise, surprise_of

if TYPE_CHECKING:
    from reformer_client.scores import Scores

POINTS = 300
WIDTH, HEIGHT = 600, 80
SHOWN_PASSAGES = 3
SHOWN_CHARACTERS = 160


def summary(scores: Scores) -> str:
    """HTML of a few kilobytes; a million tokens take about a second."""
    surprise = surprise_of(scores)
    unit = "bits per byte" if surprise.is_text else "bits per token"
    figures = [f"{scores.tokens:,} tokens"]
    if surprise.is_text:
        figures.append(f"{len(surprise.text):,} bytes")
    if surprise and not math.isnan(mean := surprise.mean(0, len(surprise))):
        figures.append(f"{mean:.3f} {unit}")
    if not math.isnan(scores.perplexity):
        figures.append(f"perplexity {scores.perplexity:.2f}")
    passages = find_passages(surprise, SHOWN_PASSAGES)
    parts = [
        f"<div><b>Scores</b> · {' · '.join(figures)}</div>",
        _sparkline(surprise, unit),
        _list("Most surprising", passages.most, surprise),
        _list("Least surprising", passages.least, surprise),
    ]
    return f'<div style="max-width:{WIDTH}px">{"".join(parts)}</div>'


def _sparkline(surprise: Surprise, unit: str) -> str:
    """The smoothed surprise from the first token to the last, and a dashed line at its mean."""
    values = [value for value in surprise.smoothed(POINTS) if not math.isnan(value)]
    if len(values) < 2:
        return ""
    mean = surprise.mean(0, len(surprise))
    low, high = min(values), max(values)
    scale = (HEIGHT - 4) / (high - low) if high > low else 0.0

    def y(value: float) -> float:
        return HEIGHT - 2 - (value - low) * scale

    points = " ".join(f"{i * WIDTH / (len(values) - 1):.1f},{y(value):.1f}" for i, value in enumerate(values))
    label = f"Surprise along the text: {low:.2f} to {high:.2f} {unit}, {mean:.2f} in the mean"
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'style="max-width:100%;margin:6px 0" fill="none" stroke="currentColor"><title>{label}</title>'
        f'<path d="M0 {y(mean):.1f}H{WIDTH}" stroke-dasharray="3 4" opacity="0.5"/>'
        f'<polyline points="{points}" stroke="#e8590c" stroke-width="1.5" stroke-linejoin="round"/></svg>'
    )


def _list(heading: str, passages: Sequence[Passage], surprise: Surprise) -> str:
    if not passages:
        return ""
    items = "".join(
        f"<li><b>{passage.mean:.2f}</b> <bdi>{html.escape(_text(passage, surprise))}</bdi>"
        f' <small style="opacity:0.7;white-space:nowrap">token {surprise.first_token + passage.start:,}</small></li>'
        for passage in passages
    )
    return f'<div>{heading}</div><ul style="margin:0 0 6px;padding-left:1.4em">{items}</ul>'


def _text(passage: Passage, surprise: Surprise) -> str:
    """The passage on one line; characters that it begins or ends within are left out."""
    start, end = surprise.bytes_before[passage.start], surprise.bytes_before[passage.end]
    text = " ".join(surprise.text[start:end].decode("utf-8", "ignore").split())
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
