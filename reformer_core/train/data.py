"""Texts, and the random crops of them that a step is made of."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reformer_core.errors import InvalidTextError
from reformer_core.tokenizers import Tokenizer
from reformer_core.tokenizers.incremental import decode_utf8


@dataclass(frozen=True)
class TextFile:
    """A text as it was read."""

    path: Path
    content: bytes  # UTF-8

    @property
    def sha256(self) -> str:
        """Of the content, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class TokenizedText:
    """A text's name and size, and its tokens, int64 [n]."""

    name: str
    content_bytes: int
    token_ids: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """What one step learns from: B crops of n tokens."""

    token_ids: torch.Tensor  # int64 [B, n]
    targets: torch.Tensor  # int64 [B, n], the tokens after each
    start_positions: torch.Tensor  # int64 [B]


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

    def __init__(
        self,
        texts: Sequence[TokenizedText],
        crop_tokens: Sequence[int],
        tokens_per_step: int,
        max_tokens: int,
        generator: torch.Generator,
    ) -> None:
        """Args:
        texts: each longer than the longest crop.
        crop_tokens: lengths to draw from.
        tokens_per_step: size of a batch, about.
        max_tokens: the model's positions.
        generator: all randomness.

        Raises:
            ValueError: a crop is longer than a text or than the positions.
        """
        longest = max(crop_tokens)
        if longest > max_tokens:
            raise ValueError(f"crops of {longest:,} tokens are longer than the model's {max_tokens:,} positions")
        for text in texts:
            if len(text.token_ids) <= longest:
                raise ValueError(
                    f"{text.name} has {len(text.token_ids):,} tokens, but crops of {longest:,} and the token after are "
                    "asked for; give longer texts or shorter crops"
                )
        self._texts = texts
        self._crop_tokens = crop_tokens
        self._tokens_per_step = tokens_per_step
        self._max_tokens = max_tokens
        self._generator = generator

    @property
    def total_tokens(self) -> int:
        """Of all texts."""
        return sum(len(text.token_ids) for text in self._texts)

    def draw(self) -> Batch:
        """The next step's crops, all of one length."""
        length = self._crop_tokens[self._random(len(self._crop_tokens))]
        rows, starts = [], []
        for _ in range(max(1, self._tokens_per_step // length)):
            rows.append(self._crop(length))
            # From before the first position on, moved up to it: else the first ones, where every document begins,
            # would be the ones that are trained the least.
            starts.append(max(0, self._random(self._max_tokens) - length + 1))
        crops = torch.stack(rows)
        return Batch(crops[:, :-1], crops[:, 1:], torch.tensor(starts))

    def _crop(self, length: int) -> torch.Tensor:
        places = [len(text.token_ids) - length for text in self._texts]
        place = self._random(sum(places))
        for text, own in zip(self._texts, places, strict=True):
            if place < own:
                return text.token_ids[place : place + length + 1]
            place -= own
        raise AssertionError("the places add up")

    def _random(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._generator))
