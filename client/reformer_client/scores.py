"""Scores: the log-probability of each token given all before it."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from reformer_client.results import Timings


@dataclass(frozen=True)
class ScoreBlock:
    """Scores of consecutive tokens, as they arrive."""

    start_token: int
    """Position of the first token here."""
    logprobs: "memoryview[float]"
    """float32 (format "f"): natural-log probabilities; NaN for the first token of a sequence."""
    token_ids: "memoryview[int]"
    """uint32 (format "I")."""

    def __len__(self) -> int:
        return len(self.logprobs)


@dataclass(frozen=True)
class Scores(ScoreBlock):
    """Scores of a whole text, or of a range of a document.

    `logprobs` and `token_ids` are read-only views of the received bytes: `numpy.asarray(scores.logprobs)` and
    `torch.frombuffer(scores.logprobs, dtype=torch.float32)` copy nothing.
    """

    total_logprob: float
    """Sum of the natural-log probabilities of all tokens here but a sequence's first, which has none."""
    content_bytes: int | None
    """Size of the text in bytes; None for a range of a document."""
    timings: Timings | None = None
    """Where the time went; None if nothing was computed."""

    @property
    def tokens(self) -> int:
        """Tokens here, the first one included."""
        return len(self)

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log-probability of the scored tokens; NaN if there are none."""
        scored = self.tokens - (self.start_token == 0)
        return math.exp(-self.total_logprob / scored) if scored > 0 else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs for the text, a byte of it; raises ValueError for a range of a document."""
        if self.content_bytes is None:
            raise ValueError("bits per byte need the whole text: a range of tokens doesn't say how many bytes it has")
        return -self.total_logprob / math.log(2) / self.content_bytes


def float32_view(data: bytes) -> "memoryview[float]":
    """Little-endian float32, as they came over the wire."""
    return memoryview(_in_native_order(data)).cast("f")


def uint32_view(data: bytes) -> "memoryview[int]":
    """Little-endian uint32, as they came over the wire."""
    return memoryview(_in_native_order(data)).cast("I")


def _in_native_order(data: bytes) -> bytes:
    if sys.byteorder == "little":
        return data
    return b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4))


def concatenate(blocks: Iterable[ScoreBlock]) -> ScoreBlock:
    """Consecutive blocks as one."""
    start_token, logprobs, token_ids = None, bytearray(), bytearray()
    for block in blocks:
        start_token = block.start_token if start_token is None else start_token
        logprobs += block.logprobs
        token_ids += block.token_ids
    return ScoreBlock(
        start_token or 0,
        memoryview(logprobs).toreadonly().cast("f"),
        memoryview(token_ids).toreadonly().cast("I"),
    )


def total(logprobs: "memoryview[float]") -> float:
    """Sum of the log-probabilities that there are (the first token of a sequence has none)."""
    return math.fsum(logprob for logprob in logprobs if not math.isnan(logprob))
