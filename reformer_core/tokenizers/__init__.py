"""Text and pictures to token ids and back. Encoding is a pure function of the bytes; decoding goes token by token."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from reformer_core.checkpoint.hub import model_directory
from reformer_core.errors import CheckpointError
from reformer_core.tokenizers.byte_level import ByteTokenizer
from reformer_core.tokenizers.incremental import IncrementalDecoder
from reformer_core.tokenizers.pieces import MODEL_FILE, SentencePieceTokenizer
from reformer_core.tokenizers.pixels import SIZE_FILE, Picture, PixelTokenizer

__all__ = [
    "ByteTokenizer",
    "IncrementalDecoder",
    "Picture",
    "PixelTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
]


class Tokenizer(Protocol):
    """What the engine, the server and the trainer need of a tokenizer."""

    @property
    def kind(self) -> str:
        """One of "sentencepiece", "bytes" and "pixels"."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text; None if there is none."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The padding token; None if there is none."""
        ...

    @property
    def digest(self) -> bytes:
        """SHA-256, 32 bytes: tokenizers of equal digests give equal ids."""
        ...

    def encode(self, content: bytes) -> torch.Tensor:
        """UTF-8 text, or a picture's file -> int64 [n], on the CPU; equal bytes give equal ids.

        Raises:
            InvalidTextError: the bytes aren't UTF-8, with the offset of the first wrong one; or no picture of the size.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """A whole sequence's text; bytes that are no UTF-8 become U+FFFD, control tokens nothing.

        Raises:
            InvalidTokensError: an id is outside the vocabulary.
        """
        ...

    def decoder(self, *, continues: bool = False) -> IncrementalDecoder:
        """The same one token at a time.

        Args:
            continues: the text goes on from an earlier one, so that a space which begins it is meant; without it, a
                model whose texts begin with a dummy space has that space taken away, as in `decode`.
        """
        ...

    def save(self, directory: Path) -> None:
        """Writes what `load_tokenizer` needs beside the model's `config.json`."""
        ...


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a model: its `spiece.model`, its `pixels.json`, or bytes for a vocabulary of 258.

    Args:
        source: a model directory or a hub id, as for `load_model`.

    Raises:
        CheckpointError: there is none of them, or the file is damaged.
    """
    directory = model_directory(source)
    pieces, size = directory / MODEL_FILE, directory / SIZE_FILE
    if pieces.is_file():
        return SentencePieceTokenizer.from_file(pieces)
    if size.is_file():
        return PixelTokenizer.from_file(size)
    config = directory / "config.json"
    try:
        vocab_size = json.loads(config.read_bytes())["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{directory} has no {MODEL_FILE}, and no vocab_size in {config.name}: {error}"
        ) from error
    if vocab_size == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    raise CheckpointError(
        f"{pieces} is missing; only a model of vocab_size {ByteTokenizer.vocab_size} reads bytes without one, "
        f"and {config} has {vocab_size}"
    )
