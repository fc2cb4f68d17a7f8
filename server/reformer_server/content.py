"""Content that clients send: its key, and its way from bytes to token ids."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from reformer.v1.document_pb2 import CONTENT_TYPE_IMAGE, CONTENT_TYPE_TOKEN_IDS, ContentType
from reformer_core import Picture, PixelTokenizer, Tokenizer
from reformer_core.errors import InvalidTextError
from reformer_server.errors import naming

TOKEN_ID_BYTES = 4
ENCODER_THREADS = 2

T = TypeVar("T")


class DocumentName(NamedTuple):
    """What a document is known by: tenants choose their ids without knowing of each other."""

    tenant: str
    document_id: str


@dataclass(frozen=True)
class ContentKey:
    """Equal keys give equal documents, for the model is the same. Tenants don't share them: a hit would tell."""

    tenant: str
    content_type: "ContentType.ValueType"
    sha256: bytes


@dataclass(frozen=True)
class Content:
    """A whole content, uploaded and checked."""

    key: ContentKey
    data: bytes | bytearray


@dataclass(frozen=True)
class Encoded:
    """What the engine reads of a content."""

    token_ids: torch.Tensor
    """int64 [n]."""
    size_bytes: int
    """Of what bits a byte are counted in: the content, or the values of a picture, whatever its file's format."""
    notes: tuple[str, ...] = ()
    """What had to be changed in a picture to read it."""


class Encoder:
    """Content to token ids and back, on threads of its own: a novel takes a second, more than the event loop has."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pixels = tokenizer if isinstance(tokenizer, PixelTokenizer) else None
        """The tokenizer of a model that reads pictures."""
        self._threads = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encoder")

    async def content(self, content: Content) -> Encoded:
        """A content of a type that the model reads. Raises InvalidFieldError."""
        with naming("chunk.data"):
            if content.key.content_type == CONTENT_TYPE_IMAGE:
                picture = await self._run(lambda: self._read(bytes(content.data), resize=False))
                return Encoded(picture.token_ids, len(picture.token_ids), picture.notes)
            is_ids = content.key.content_type == CONTENT_TYPE_TOKEN_IDS
            token_ids = await self._run(
                lambda: ids_from_bytes(content.data) if is_ids else self._encode(bytes(content.data))
            )
            return Encoded(token_ids, len(content.data))

    async def picture(self, data: bytes, *, resize: bool) -> Picture:
        """A picture that is part of a message. Raises InvalidFieldError."""
        with naming("image.data"):
            return await self._run(lambda: self._read(data, resize=resize))

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

    async def png(self, ids: list[int], columns: int) -> bytes:
        """Rows of pixels, or whole pictures side by side, as a PNG file. Raises InvalidFieldError."""
        pixels = self._of_pictures
        with naming("token_ids.ids"):
            return await self._run(lambda: pixels.to_png(ids, columns=columns))

    def close(self) -> None:
        """Lets the threads end; what they still do is of no use to anybody."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def _of_pictures(self) -> PixelTokenizer:
        if self.pixels is None:
            raise InvalidTextError("this model reads text; only one with a pixel tokenizer reads pictures")
        return self.pixels

    def _read(self, data: bytes, *, resize: bool) -> Picture:
        return self._of_pictures.read(data, resize=resize)

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
