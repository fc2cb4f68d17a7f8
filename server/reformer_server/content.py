"""Content that clients send: its key, and its way from bytes to token ids."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from reformer.v1.document_pb2 import CONTENT_TYPE_TOKEN_IDS, ContentType
from reformer_core import Tokenizer
from reformer_server.errors import naming

TOKEN_ID_BYTES = 4
ENCODER_THREADS = 2

T = TypeVar("T")


@dataclass(frozen=True)
class ContentKey:
    """Equal keys give equal documents, for the model is the same."""

    content_type: "ContentType.ValueType"
    sha256: bytes


@dataclass(frozen=True)
class Content:
    """A whole content, uploaded and checked."""

    key: ContentKey
    data: bytes | bytearray


class Encoder:
    """Text to token ids and back, on threads of its own: a novel takes a second, which the event loop doesn't have."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encoder")

    async def content(self, content: Content) -> torch.Tensor:
        """Token ids of a content, int64 [n]. Raises InvalidFieldError."""
        is_ids = content.key.content_type == CONTENT_TYPE_TOKEN_IDS
        with naming("chunk.data"):
            return await self._run(
                lambda: ids_from_bytes(content.data) if is_ids else self._encode(bytes(content.data))
            )

    async def texts(self, texts: Mapping[str, str]) -> list[torch.Tensor]:
        """Token ids of each text, int64 [m], by the request's field it comes from; an empty text has none.

        Raises InvalidFieldError.
        """

        def encode_all() -> list[torch.Tensor]:
            tensors = []
            for field, text in texts.items():
                with naming(field):
                    tensors.append(self._encode(text.encode()))
            return tensors

        return await self._run(encode_all)

    async def decode(self, ids: list[int]) -> str:
        """The text of token ids that are all in the vocabulary."""
        return await self._run(lambda: self.tokenizer.decode(ids))

    def close(self) -> None:
        """Lets the threads end; what they still do is of no use to anybody."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _encode(self, text: bytes) -> torch.Tensor:
        return self.tokenizer.encode(text) if text else torch.empty(0, dtype=torch.int64)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def ids_from_bytes(data: bytes | bytearray) -> torch.Tensor:
    """Little-endian uint32 to int64 [n]."""
    return torch.from_numpy(np.frombuffer(data, "<u4").astype(np.int64))


def ids_to_bytes(ids: torch.Tensor) -> bytes:
    """Any integers [n] to little-endian uint32."""
    return ids.numpy().astype("<u4").tobytes()


def logprobs_to_bytes(logprobs: torch.Tensor) -> bytes:
    """float32 [n] to little-endian float32."""
    return logprobs.numpy().astype("<f4", copy=False).tobytes()
