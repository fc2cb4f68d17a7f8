"""Texts, and the random crops of them that a step learns from."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from reformer_core.errors import InvalidTextError
from reformer_core.tokenizers import Tokenizer
from reformer_core.tokenizers.incremental import decode_utf8
from reformer_core.train.data import Batch, DataFile


@dataclass(frozen=True)
class TextFile:
    """A text as it was read."""

    path: Path
    content: bytes  # UTF-8

    @property
    def file(self) -> DataFile:
        """What is told of it."""
        return DataFile(self.path, len(self.content), hashlib.sha256(self.content).hexdigest())


@dataclass(frozen=True)
class TokenizedText:
    """A text's name and size, and its tokens, int64 [n]."""

    name: str
    content_bytes: int
    token_ids: torch.Tensor


def read_text(path: Path) -> TextFile:
    """Reads a text; raises ValueError if there is none, it is empty, or its bytes are no UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    if not content:
        raise ValueError(f"{path} is empty; a text is needed")
    try:
        decode_utf8(content)
    except InvalidTextError as error:
        raise ValueError(f"{path}: {error}") from error
    return TextFile(path, content)


def tokenize(text: TextFile, tokenizer: Tokenizer, eos_id: int | None = None) -> TokenizedText:
    """A text's tokens, followed by eos_id if there is one."""
    token_ids = tokenizer.encode(text.content)
    if eos_id is not None:
        token_ids = torch.cat([token_ids, torch.tensor([eos_id])])
    return TokenizedText(text.path.name, len(text.content), token_ids)


class Crops:
    """Random crops at random absolute positions; each crop of the texts is equally likely."""

    def __init__(self, texts: Sequence[TokenizedText], longest: int, max_tokens: int) -> None:
        """Args:
        texts: each longer than the longest crop.
        longest: length of the longest crop, in tokens.
        max_tokens: the model's positions.

        Raises:
            ValueError: the longest crop is longer than a text or than the positions.
        """
        if longest > max_tokens:
            raise ValueError(f"crops of {longest:,} tokens are longer than the model's {max_tokens:,} positions")
        for text in texts:
            if len(text.token_ids) <= longest:
                raise ValueError(
                    f"{text.name} has {len(text.token_ids):,} tokens, but crops of {longest:,} and the token after are "
                    "asked for; give longer texts, or shorter lengths in the schedule"
                )
        self._texts = texts
        self._max_tokens = max_tokens

    length = None

    @property
    def total_tokens(self) -> int:
        return sum(len(text.token_ids) for text in self._texts)

    @property
    def bits_per_nat(self) -> float:
        """Nats a token -> bits a byte of UTF-8."""
        return self.total_tokens / sum(text.content_bytes for text in self._texts) / math.log(2)

    def draw(self, generator: numpy.random.Generator, length: int, count: int) -> Batch:
        places = [len(text.token_ids) - length for text in self._texts]
        crops = torch.stack(
            [self._crop(int(place), places, length) for place in generator.integers(sum(places), size=count)]
        )
        # From before the first position on, moved up to it: else the first ones, where every document begins, would be
        # the ones that are trained the least.
        starts = (generator.integers(self._max_tokens, size=count) - length + 1).clip(min=0)
        return Batch(crops[:, :-1], crops[:, 1:], torch.from_numpy(starts))

    def _crop(self, place: int, places: Sequence[int], length: int) -> torch.Tensor:
        """The crop at a place, counted through all texts; `places` are each text's."""
        for text, own in zip(self._texts, places, strict=True):
            if place < own:
                return text.token_ids[place : place + length + 1]
            place -= own
        raise AssertionError("the places add up")
