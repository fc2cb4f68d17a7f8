"""When a generation ends, and the text that it gives: stop texts, stop ids, the limit of tokens."""

from reformer_core.errors import InvalidParameterError
from reformer_core.events import FinishReason
from reformer_core.sampling_params import SamplingParams
from reformer_core.tokenizers import Tokenizer


class OutputText:
    """One request's output: token ids in, text out, until a reason to finish."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, eos_token_id: int | None) -> None:
        """Args:
            tokenizer: None: there is no text, only ids.
            eos_token_id: the model's, which always is a stop id.

        Raises:
            InvalidParameterError: stop texts without a tokenizer, or for pictures.
        """
        if params.stop and (tokenizer is None or tokenizer.kind == "pixels"):
            raise InvalidParameterError("stop", "must be empty, for this model's tokens have no text; use stop_ids")
        # What is generated goes on from a document or a prompt.
        self._decoder = None if tokenizer is None else tokenizer.decoder(continues=True)
        self._stop_texts = StopTexts(params.stop)
        self._stop_ids = frozenset(params.stop_ids) | ({eos_token_id} - {None})
        self._remaining_tokens = params.max_tokens

    def push(self, token_id: int) -> tuple[str, FinishReason | None]:
        """The text that can be told now, and whether and why this token is the last one.

        Text is held back while it may be half a character, or the beginning of a stop text; with the last token, all
        that is left comes. Neither a stop text nor a stop id's text is part of it.
        """
        self._remaining_tokens -= 1
        if token_id in self._stop_ids:
            return self.finish(), FinishReason.STOP
        text, stopped = self._stop_texts.push("" if self._decoder is None else self._decoder.push(token_id))
        if stopped:
            return text, FinishReason.STOP
        if self._remaining_tokens == 0:
            return text + self.finish(), FinishReason.LENGTH
        return text, None

    def finish(self) -> str:
        """What was held back, if the generation ends for a reason that only the caller knows."""
        text, stopped = self._stop_texts.push("" if self._decoder is None else self._decoder.flush())
        return text if stopped else text + self._stop_texts.flush()


class StopTexts:
    """Passes text through up to the first stop text: the first to be complete; of several, the one that began first.

    The result doesn't depend on how the text is cut into pushes.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        """`stop`: none of them empty."""
        self._matches = [_Match(text) for text in stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to tell now, and whether a stop text is complete; nothing may be pushed after it."""
        text = self._held + text
        for end in range(len(self._held) + 1, len(text) + 1):
            for match in self._matches:
                match.push(text[end - 1])
            length = max((len(match.text) for match in self._matches if match.complete), default=0)
            if length:
                self._held = ""
                return text[: end - length], True
        safe = len(text) - max((match.length for match in self._matches), default=0)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """What is held back because it may be the beginning of a stop text, at the end."""
        text, self._held = self._held, ""
        return text


class _Match:
    """How much of one stop text the text read so far ends with (Knuth, Morris and Pratt 1977).

    The time a character takes doesn't depend on the stop text's length, which is the caller's choice.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.length = 0
        # fallback[i]: length of the longest proper beginning of text[: i + 1] that it also ends with.
        self._fallback = [0] * len(text)
        for i in range(1, len(text)):
            self._fallback[i] = self._extended(self._fallback[i - 1], text[i])

    @property
    def complete(self) -> bool:
        """Whether the text read so far ends with the stop text."""
        return self.length == len(self.text)

    def push(self, character: str) -> None:
        """Reads one character; not to be called once complete."""
        self.length = self._extended(self.length, character)

    def _extended(self, length: int, character: str) -> int:
        while length and self.text[length] != character:
            length = self._fallback[length - 1]
        return length + 1 if self.text[length] == character else 0
