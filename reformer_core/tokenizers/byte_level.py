"""Bytes as tokens, as google/reformer-enwik8 has them: token = byte + 2, and 0 pads."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch

from reformer_core.tokenizers.incremental import IncrementalDecoder, decode_all, decode_utf8

_RESERVED = 2  # ids before those of the bytes: padding, and one that is unused
_TOKEN_BYTES = (b"",) * _RESERVED + tuple(bytes([byte]) for byte in range(256))


class ByteTokenizer:
    """Each byte of the UTF-8 text is a token; any text comes back as it was."""

    kind = "bytes"
    vocab_size = len(_TOKEN_BYTES)
    eos_id = None
    pad_id = 0

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.kind.encode()).digest()

    def encode(self, content: bytes) -> torch.Tensor:
        decode_utf8(content)  # for the error alone: a text is UTF-8, whatever the tokenizer
        return torch.from_numpy(numpy.frombuffer(content, numpy.uint8).astype(numpy.int64) + _RESERVED)

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode_all(self.decoder(), token_ids)

    def decoder(self, *, continues: bool = False) -> IncrementalDecoder:
        return IncrementalDecoder(_TOKEN_BYTES)

    def save(self, directory: Path) -> None:
        """Nothing to write: the vocabulary's size in `config.json` says it all."""
