"""How the tokens of one request are chosen and when it ends: what the caller says, validated."""

import math
from dataclasses import dataclass

from reformer_core.errors import InvalidParameterError

MAX_TOP_LOGPROBS = 20
MAX_STOP_TEXTS = 16
MAX_STOP_CHARACTERS = 4096  # each; to be looked for, a stop text is read by the thread that everybody waits for


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters; raises InvalidParameterError.

    The repetition penalty is applied to the logits first; then temperature, top-k, top-p and min-p, each to what the
    one before left, renormalised.
    """

    temperature: float = 1.0
    """0 and more; 0 takes the most likely token."""
    repetition_penalty: float = 1.0
    """Above 0. Positive logits of tokens seen in the prompt or continuation are divided by it, negative ones multiplied
    (CTRL, arXiv 1909.05858, section 4.1)."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probabilities reach this; above 0, at most 1."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one's probability; 0 to 1."""
    seed: int = 0
    """The same seed gives the same tokens; 0 to 2**64 - 1."""
    max_tokens: int = 256
    """Tokens to generate at most; 1 and more."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation; not part of the output. At most 16, of 1 to 4,096 characters."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end the generation, besides the model's end-of-sequence id; their text is not part of the output."""
    top_logprobs: int = 0
    """With each token, report this many of the most likely ones; 0 to 20."""

    def __post_init__(self) -> None:
        def require(name: str, condition: bool, allowed: str) -> None:
            if not condition:
                raise InvalidParameterError(name, f"must be {allowed}, but is {getattr(self, name)!r}")

        require("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "finite, 0 or more")
        require(
            "repetition_penalty",
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "finite, above 0",
        )
        require("top_k", self.top_k >= 0, "0 (off) or more")
        require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        require("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        require("seed", 0 <= self.seed < 2**64, "between 0 and 2**64 - 1")
        require("max_tokens", self.max_tokens >= 1, "1 or more")
        require("stop", len(self.stop) <= MAX_STOP_TEXTS, f"at most {MAX_STOP_TEXTS} texts")
        require("stop", all(self.stop), "free of empty texts")
        for text in self.stop:
            if len(text) > MAX_STOP_CHARACTERS:
                allowed = f"must be made of texts of at most {MAX_STOP_CHARACTERS:,} characters"
                raise InvalidParameterError("stop", f"{allowed}, but one has {len(text):,}")
        require("stop_ids", all(0 <= id < 2**31 for id in self.stop_ids), "made of token ids")
        require("top_logprobs", 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS, f"between 0 and {MAX_TOP_LOGPROBS}")
