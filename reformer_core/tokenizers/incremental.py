"""Decoding one token at a time: bytes are held back until they make whole characters."""

import codecs
from collections.abc import Sequence

from reformer_core.errors import InvalidTextError, InvalidTokensError


class IncrementalDecoder:
    """Turns tokens into text as they come. The pushes' texts and the flush, joined, are the whole text."""

    def __init__(self, token_bytes: Sequence[bytes], *, strip_space: bool = False) -> None:
        """Args:
        token_bytes: the bytes of each token of the vocabulary.
        strip_space: take away the first space, if the text begins with it.
        """
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became complete with this token; never half a character, so it may be empty.

        Raises:
            InvalidTokensError: the id is outside the vocabulary.
        """
        if not 0 <= token_id < len(self._token_bytes):
            last = len(self._token_bytes) - 1
            raise InvalidTokensError(f"token id {token_id} is outside the tokenizer's vocabulary: ids are 0 to {last}")
        [token] = self.spell([token_id])
        return self._utf8.decode(token)

    def spell(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes that become text with each token; a token may begin or end within a character.

        An id outside the vocabulary has none: a model may have more ids than its tokenizer.
        """
        spelled = [self._token_bytes[id] if 0 <= id < len(self._token_bytes) else b"" for id in token_ids]
        if self._strip_space and any(spelled):
            first = next(index for index, token in enumerate(spelled) if token)
            spelled[first] = spelled[first].removeprefix(b" ")
            self._strip_space = False
        return spelled

    def flush(self) -> str:
        """What was held back at the end: U+FFFD for a character that never became complete."""
        return self._utf8.decode(b"", final=True)


def decode_all(decoder: IncrementalDecoder, token_ids: Sequence[int]) -> str:
    """A whole sequence through a fresh decoder."""
    return "".join(map(decoder.push, token_ids)) + decoder.flush()


def decode_utf8(content: bytes) -> str:
    """Strict UTF-8; raises InvalidTextError with the offset of the first wrong byte."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidTextError(
            f"the text is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start} ({error.reason})"
        ) from error
