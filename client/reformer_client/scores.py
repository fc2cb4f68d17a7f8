"""Scores: the log-probability of each token given all before it."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from reformer_client.results import ModelInfo, Timings


@dataclass(frozen=True)
class ScoreBlock:
    """Scores of consecutive tokens, as they arrive."""

    start_token: int
    """Position of the first token here."""
    logprobs: "memoryview[float]"
    """float32 (format "f"): natural-log probabilities; NaN for the first token of a sequence."""
    token_ids: "memoryview[int]"
    """uint32 (format "I")."""
    text: bytes
    """The text that the tokens stand for; a token, and so a block, may begin or end within a character. Empty if the
    tokens are no text."""
    text_lengths: "memoryview[int]"
    """uint32 (format "I"): how many bytes of `text` each token has."""

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
    """Size of what was uploaded, in bytes; None for a range of a document."""
    timings: Timings | None = None
    """Where the time went; None if nothing was computed."""
    notes: tuple[str, ...] = ()
    """What the server had to change in a picture to read it."""

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
        """Bits the model needs for the text, a byte of it; for tokens that are no text, a byte of what was uploaded.

        Raises ValueError if that isn't known either, as for a range of a document.
        """
        size = len(self.text) or self.content_bytes
        if not size:
            raise ValueError("bits per byte need a text, but these tokens have none")
        return -self.total_logprob / math.log(2) / size

    def to_html(self, *, title: str = "Scores", model: ModelInfo | None = None) -> str:
        """One page that shows the surprise along the text, the passages that stand out, and the text shaded by it.

        It asks no network for anything, and can be saved and sent as it is. A million tokens make about 5 MB.

        Args:
            title: names what was scored.
            model: what `client.model()` returned, if the page shall say what scored it.

        Raises:
            ValueError: there are no tokens.
        """
        from reformer_client.report import page

        return page(self, title=title, model=model)

    def _repr_html_(self) -> str:
        """What notebooks show: figures, a line of the surprise along the text, the passages that stand out."""
        from reformer_client.report import summary

        return summary(self)


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
    start_token, logprobs, token_ids, text, text_lengths = None, bytearray(), bytearray(), bytearray(), bytearray()
    for block in blocks:
        start_token = block.start_token if start_token is None else start_token
        logprobs += block.logprobs
        token_ids += block.token_ids
        text += block.text
        text_lengths += block.text_lengths
    return ScoreBlock(
        start_token or 0,
        memoryview(logprobs).toreadonly().cast("f"),
        memoryview(token_ids).toreadonly().cast("I"),
        bytes(text),
        memoryview(text_lengths).toreadonly().cast("I"),
    )


def total(logprobs: "memoryview[float]") -> float:
    """Sum of the log-probabilities that there are (the first token of a sequence has none)."""
    return math.fsum(logprob for logprob in logprobs if not math.isnan(logprob))
