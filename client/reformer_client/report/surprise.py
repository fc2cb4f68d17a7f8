"""Scores as surprise: bits a token, with running sums that answer for any stretch of the text at once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reformer_client.scores import Scores

MOST_BITS = 64.0
"""Whatever is less likely than 2^-64 counts as that: float16 models call it impossible, which is no number to draw."""

INVALID_BYTE = "\x1a"
"""ASCII's SUBSTITUTE stands for each byte that is no UTF-8: as long as what it replaces, so that no position moves."""


@dataclass(frozen=True)
class Surprise:
    """How surprising each of n tokens is, and which bytes of the text it stands for."""

    first_token: int
    """Position of the first token here in its document."""
    is_scored: bool
    """Whether the first token has a score, too: a document's first one has none, and 0 bits here."""
    bits: Sequence[float]
    """[n], −log2 of each token's probability, 0 to MOST_BITS."""
    text: bytes
    """Valid UTF-8. If the tokens are no text, their ids, each with a space behind it."""
    lengths: Sequence[int]
    """[n], bytes of `text`."""
    is_text: bool
    """Whether `text` is what the tokens stand for."""
    bits_before: Sequence[float]
    """[n + 1], running sums of `bits`."""
    bytes_before: Sequence[int]
    """[n + 1], running sums of `lengths`."""

    def __len__(self) -> int:
        return len(self.bits)

    def mean(self, start: int, end: int) -> float:
        """Bits a byte of the tokens from `start` to `end` (excluded), or bits a token where there is no text.

        NaN for a stretch without bytes, or without scored tokens.
        """
        if self.is_text:
            size = self.bytes_before[end] - self.bytes_before[start]
        else:
            size = end - start - (start == 0 and not self.is_scored)
        return (self.bits_before[end] - self.bits_before[start]) / size if size > 0 else math.nan

    def smoothed(self, points: int) -> list[float]:
        """`mean` of each of so many stretches of the text, as equal as they can be; fewer if there are fewer tokens."""
        points = min(points, len(self))
        edges = [i * len(self) // points for i in range(points + 1)] if points else [0]
        return [self.mean(start, end) for start, end in pairwise(edges)]


def surprise_of(scores: Scores) -> Surprise:
    """A million tokens take about half a second."""
    bits = [min(logprob * _BITS_A_NAT, MOST_BITS) if logprob <= 0 else 0.0 for logprob in scores.logprobs]  # NaN: 0
    text, lengths, is_text = scores.text, scores.text_lengths.tolist(), bool(scores.text)
    if not is_text:
        ids = [b"%d " % id for id in scores.token_ids]
        text, lengths = b"".join(ids), list(map(len, ids))
    return Surprise(
        first_token=scores.start_token,
        is_scored=scores.start_token > 0,
        bits=bits,
        text=_valid_utf8(text),
        lengths=lengths,
        is_text=is_text,
        bits_before=list(accumulate(bits, initial=0.0)),
        bytes_before=list(accumulate(lengths, initial=0)),
    )


_BITS_A_NAT = -1 / math.log(2)


def _valid_utf8(text: bytes) -> bytes:
    try:
        text.decode()
    except UnicodeDecodeError:
        return re.sub("[\udc80-\udcff]", INVALID_BYTE, text.decode("utf-8", "surrogateescape")).encode()
    return text
