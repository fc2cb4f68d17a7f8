"""SentencePiece models (`spiece.model`), lossless where the model is.

A model without normalisation, without dummy prefix and with byte pieces gives any text back as it was. One thing has to
be done for that here: SentencePiece writes a space as U+2581, so a U+2581 in the text would come back as a space. It
is encoded as its three bytes instead, which come back as they are.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import torch

from reformer_core.errors import CheckpointError
from reformer_core.tokenizers.incremental import IncrementalDecoder, decode_all, decode_utf8

MODEL_FILE = "spiece.model"  # Hugging Face's name
SPACE = "\u2581"


class SentencePieceTokenizer:
    """A SentencePiece model, unigram or BPE."""

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        """Args:
        model: content of a `spiece.model`.

        Raises:
            CheckpointError: it isn't one.
        """
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            self.vocab_size: int = self._processor.vocab_size()
            self._token_bytes = [self._bytes_of(token_id) for token_id in range(self.vocab_size)]
            self._dummy_prefix = self._drops_first_space()
        except (
            RuntimeError,
            ValueError,
        ) as error:  # ValueError: pieces that are no UTF-8, or byte pieces without a byte
            raise CheckpointError(f"not a SentencePiece model: {error}") from error
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        has_bytes = all(map(self._processor.is_byte, byte_ids))
        self._space_symbol_ids = byte_ids if has_bytes and not self._dummy_prefix else None

    @classmethod
    def from_file(cls, path: Path) -> "SentencePieceTokenizer":
        """Raises CheckpointError, with the path, if the file can't be read or isn't a SentencePiece model."""
        try:
            return cls(path.read_bytes())
        except (OSError, CheckpointError) as error:
            raise CheckpointError(f"{path}: {error}") from error

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.model).digest()

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text; None if the model has none."""
        token_id: int = self._processor.eos_id()
        return token_id if token_id >= 0 else None

    @property
    def pad_id(self) -> int | None:
        """The padding token; None if the model has none."""
        token_id: int = self._processor.pad_id()
        return token_id if token_id >= 0 else None

    def encode(self, content: bytes) -> torch.Tensor:
        text = decode_utf8(content)
        if self._space_symbol_ids is None:
            return torch.tensor(self._processor.encode(text), dtype=torch.long)
        first, *others = text.split(SPACE)
        token_ids: list[int] = self._processor.encode(first)
        for part in others:
            token_ids += self._space_symbol_ids
            token_ids += self._processor.encode(part)
        return torch.tensor(token_ids, dtype=torch.long)

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode_all(self.decoder(), token_ids)

    def decoder(self, *, continues: bool = False) -> IncrementalDecoder:
        return IncrementalDecoder(self._token_bytes, strip_space=self._dummy_prefix and not continues)

    def save(self, directory: Path) -> None:
        (directory / MODEL_FILE).write_bytes(self.model)

    def _bytes_of(self, token_id: int) -> bytes:
        piece: str = self._processor.id_to_piece(token_id)
        if self._processor.is_control(token_id):
            return b""
        if self._processor.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # "<0x0A>"
        if self._processor.is_unknown(token_id):
            surface: str = self._processor.decode([token_id])
            return surface.encode()
        return piece.replace(SPACE, " ").encode()

    def _drops_first_space(self) -> bool:
        """Whether decoding takes away a text's first space, because encoding adds one (or trims them)."""
        for token_id in range(self.vocab_size):
            if self._processor.id_to_piece(token_id).startswith(SPACE):
                return not self._processor.decode([token_id]).startswith(" ")
        return False
