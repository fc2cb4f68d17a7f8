"""What a run needs of its data, whatever it is: examples to learn from, and a measure of how good a model is.

Shapes: B examples, n tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy
import torch

from reformer_core.config import ReformerConfig
from reformer_core.model import ReformerModel
from reformer_core.tokenizers import Tokenizer


@dataclass(frozen=True)
class Batch:
    """B examples of n + 1 tokens, of which each but the first is predicted."""

    token_ids: torch.Tensor  # int64 [B, n]
    targets: torch.Tensor  # int64 [B, n], the tokens after each
    start_positions: torch.Tensor  # int64 [B]

    def __len__(self) -> int:
        return len(self.token_ids)

    def parts(self, count: int) -> list["Batch"]:
        """The batch in parts that differ by one example at most; some are empty if it has fewer than `count`."""
        tensors = (self.token_ids, self.targets, self.start_positions)
        return [Batch(*part) for part in zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)]


class Examples(Protocol):
    """A source of examples. It has no state: what is drawn is a function of the generator alone."""

    @property
    def length(self) -> int | None:
        """Of every example, in tokens; None: of any length that the phases ask for."""
        ...

    @property
    def total_tokens(self) -> int:
        """Of all data, each counted once."""
        ...

    @property
    def bits_per_nat(self) -> float:
        """Turns nats a token into the unit that the data's validation has."""
        ...

    def draw(self, generator: numpy.random.Generator, length: int, count: int) -> Batch:
        """`count` examples of `length` tokens each."""
        ...


class Validation(Protocol):
    """Held-out data, and how good a model is on it."""

    @property
    def name(self) -> str:
        """Of the data."""
        ...

    def bits(
        self, model: ReformerModel, precision: torch.dtype = torch.float32, max_tokens: int | None = None
    ) -> float:
        """Bits that the model needs for a unit of the data, from the first `max_tokens` or so, or from all."""
        ...


@dataclass(frozen=True)
class DataFile:
    """A file or folder that data was read from."""

    path: Path
    size_bytes: int
    sha256: str
    """Of the content, hexadecimal."""


class Data(Protocol):
    """What was read from the files that the settings name."""

    @property
    def unit(self) -> str:
        """What bits are counted a unit of: "byte" or "dimension"."""
        ...

    @property
    def files(self) -> Sequence[DataFile]:
        """That the model learns from."""
        ...

    @property
    def validation_files(self) -> Sequence[DataFile]:
        """Held out."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What had to be converted, for people."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The one that the settings name, or one for this data."""
        ...

    def configuration(self, tokenizer: Tokenizer) -> ReformerConfig:
        """Of a small model for this data."""
        ...

    def initialise(self, model: ReformerModel) -> None:
        """Sets random weights to better ones, where there are any."""
        ...

    def examples(self, tokenizer: Tokenizer, config: ReformerConfig, longest: int) -> Examples:
        """To learn from; raises ValueError if the model can't read them, or there are none of the longest length."""
        ...

    def validations(self, tokenizer: Tokenizer, config: ReformerConfig, sequence_tokens: int) -> Sequence[Validation]:
        """Of the held-out data, in sequences of so many tokens where it isn't made of examples."""
        ...
