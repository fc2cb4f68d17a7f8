"""Real text of any length, for benchmarks that send text: novels, again and again."""

from collections.abc import Sequence
from pathlib import Path


def read_bytes(texts: Sequence[Path], count: int) -> bytes:
    """So many bytes of UTF-8: the texts one after the other, repeated if they are shorter; spaces at the end, where the
    cut would halve a character.
    """
    content = b"\n".join(text.read_bytes() for text in texts)
    whole = (content * -(-count // len(content)))[:count].decode(errors="ignore").encode()
    return whole.ljust(count)
