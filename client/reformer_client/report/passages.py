"""The passages of a text that surprise a model the most, and the least."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from reformer_client.report.surprise import Surprise

PASSAGE_BYTES = 200
"""About two sentences."""
PASSAGE_IDS = 64
"""Tokens of a passage where they are no text."""
PASSAGES = 12
STEPS = 8
"""A passage may begin at every 8th part of its length."""
APART = 8
"""In a long text, passages begin at least so many of their lengths apart: one odd table shall not be all one sees."""


@dataclass(frozen=True)
class Passage:
    """Tokens from `start` to `end` (excluded), counted from the first token of the scores."""

    start: int
    end: int
    mean: float
    """As `Surprise.mean`."""


@dataclass(frozen=True)
class Passages:
    """Both ends, the most extreme first."""

    most: list[Passage]
    least: list[Passage]


def find_passages(surprise: Surprise, count: int = PASSAGES) -> Passages:
    """At most `count` passages each; none of a text that is too short to have parts."""
    length = passage_tokens(surprise)
    first = 0 if surprise.is_scored else 1
    candidates = []
    for start in range(first, len(surprise) - length + 1, max(1, length // STEPS)):
        mean = surprise.mean(start, start + length)
        if not math.isnan(mean):
            candidates.append((mean, start))
    candidates.sort()
    apart = max(length, min(APART * length, len(surprise) // (2 * max(1, count))))
    return Passages(
        most=_spread(reversed(candidates), length, apart, count),
        least=_spread(candidates, length, apart, count),
    )


def passage_tokens(surprise: Surprise) -> int:
    """Length of a passage, so that a text has room for some: at most a tenth of it."""
    if not surprise.is_text:
        wanted = PASSAGE_IDS
    else:
        wanted = round(PASSAGE_BYTES * len(surprise) / len(surprise.text))
    return max(1, min(wanted, len(surprise) // 10))


def _spread(candidates: Iterable[tuple[float, int]], length: int, apart: int, count: int) -> list[Passage]:
    chosen: list[Passage] = []
    for mean, start in candidates:
        if len(chosen) == count:
            break
        if all(abs(start - other.start) >= apart for other in chosen):
            chosen.append(Passage(start, start + length, mean))
    return chosen
