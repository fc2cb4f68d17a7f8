"""What can be uploaded, and how it is read: in blocks, from any offset that it still can give."""

import asyncio
import hashlib
import io
import os
import sys
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from reformer.v1 import document_pb2
from reformer_client.token_ids import token_ids

BLOCK_BYTES = 256 * 1024
MAX_CHUNK_BYTES = 512 * 1024  # of the contract

TokenSequence = Sequence[int]
Source = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | TokenSequence
    | Iterable[bytes]
    | AsyncIterable[bytes]
)
"""A `str` is text, a `Path` is a file; bytes, binary files and (async) iterables of bytes are UTF-8 text as well.
Files and bytes that begin as PNG or JPEG do, which no UTF-8 text can, are pictures.
A sequence of ints (or an array of them, as of `array` or numpy) is token ids."""

IMAGE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


class SourceNotSeekableError(ValueError):
    """The bytes from an earlier offset on are gone."""


class Content(Protocol):
    """Bytes to upload. `read` may be called again with an earlier offset."""

    content_type: document_pb2.ContentType.ValueType
    total_bytes: int | None
    """None if it can't be known in advance."""

    async def read(self, offset: int) -> bytes:
        """At most MAX_CHUNK_BYTES from `offset` on; empty at the end. Raises SourceNotSeekableError."""
        ...

    async def sha256(self) -> bytes | None:
        """The digest of all of it; None if it can't be known in advance."""
        ...

    def close(self) -> None:
        """Closes what was opened for reading; what the caller opened stays open."""
        ...


def open_content(source: Source) -> Content:
    """The content of a source; raises TypeError for what can't be one, OSError for a file that can't be opened."""
    if isinstance(source, str):
        return BytesContent(source.encode())
    if isinstance(source, bytes | bytearray | memoryview):
        return BytesContent(source)
    if isinstance(source, os.PathLike):
        return FileContent(Path(source).open("rb"), closes=True)
    if isinstance(source, io.TextIOBase):
        raise TypeError("the file is open in text mode; open it in binary mode ('rb'), or pass its Path")
    if hasattr(source, "read"):
        file = cast(BinaryIO, source)
        return FileContent(file) if file.seekable() else IterableContent(iter(partial(file.read, BLOCK_BYTES), b""))
    if (ids := _encoded_ids(source)) is not None:
        return BytesContent(ids, document_pb2.CONTENT_TYPE_TOKEN_IDS)
    if isinstance(source, Iterable | AsyncIterable):
        return IterableContent(cast("Iterable[bytes] | AsyncIterable[bytes]", source))
    raise TypeError(
        f"can't read from {type(source).__name__}; pass a str (text), a Path (file), bytes, a file open in binary "
        "mode, an iterable of bytes, or a sequence of token ids"
    )


def _encoded_ids(source: object) -> bytes | None:
    """Little-endian uint32 ids if `source` is a sequence (or a buffer) of ints, else None."""
    if isinstance(source, Sequence):
        if not source or isinstance(source[0], bytes | bytearray | memoryview):
            return None
        ids = token_ids(source)
    else:
        try:
            buffer = memoryview(source)  # type: ignore[arg-type]  # arrays, whosever they are
        except TypeError:
            return None
        ids = token_ids(buffer.tolist())
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def content_type_of(beginning: bytes) -> document_pb2.ContentType.ValueType:
    """A picture or text, by a content's first bytes: 8 are enough."""
    if beginning.startswith(IMAGE_SIGNATURES):
        return document_pb2.CONTENT_TYPE_IMAGE
    return document_pb2.CONTENT_TYPE_TEXT


class BytesContent:
    """Content in memory."""

    def __init__(
        self,
        data: bytes | bytearray | memoryview,
        content_type: document_pb2.ContentType.ValueType | None = None,
    ) -> None:
        """`content_type` None: a picture or text, as its first bytes tell."""
        self._data = memoryview(data).cast("B")
        self.content_type = content_type_of(bytes(self._data[:8])) if content_type is None else content_type
        self.total_bytes: int | None = self._data.nbytes

    async def read(self, offset: int) -> bytes:
        return bytes(self._data[offset : offset + BLOCK_BYTES])

    async def sha256(self) -> bytes | None:
        return (await asyncio.to_thread(hashlib.sha256, self._data)).digest()

    def close(self) -> None:
        pass


class FileContent:
    """A seekable binary file, from where it stands to its end."""

    def __init__(self, file: BinaryIO, *, closes: bool = False) -> None:
        self._file = file
        self._closes = closes
        self._start = file.tell()
        self.content_type = content_type_of(file.read(8))
        self.total_bytes: int | None = file.seek(0, os.SEEK_END) - self._start
        # A read goes on in its thread after its task was cancelled: it must not move the file under the next one.
        self._lock = threading.Lock()

    async def read(self, offset: int) -> bytes:
        return await asyncio.to_thread(self._read, offset)

    def _read(self, offset: int) -> bytes:
        with self._lock:
            self._file.seek(self._start + offset)
            return self._file.read(BLOCK_BYTES)

    async def sha256(self) -> bytes | None:
        return await asyncio.to_thread(self._sha256)

    def _sha256(self) -> bytes:
        digest, offset = hashlib.sha256(), 0
        while block := self._read(offset):
            digest.update(block)
            offset += len(block)
        return digest.digest()

    def close(self) -> None:
        with self._lock:
            if self._closes:
                self._file.close()


class IterableContent:
    """Blocks that come once. The latest is kept, so that an upload that broke off in it can go on."""

    content_type: document_pb2.ContentType.ValueType = document_pb2.CONTENT_TYPE_TEXT
    total_bytes: int | None = None

    def __init__(self, blocks: Iterable[bytes] | AsyncIterable[bytes]) -> None:
        self._blocks = aiter(blocks) if isinstance(blocks, AsyncIterable) else _in_threads(blocks)
        self._block = b""
        self._block_start = 0
        self._coming: asyncio.Task[bytes] | None = None

    async def read(self, offset: int) -> bytes:
        if offset < self._block_start:
            raise SourceNotSeekableError(
                f"the source can be read only once, and its bytes from {offset:,} to {self._block_start:,} are gone; "
                "pass a Path, bytes or a seekable file"
            )
        while offset >= self._block_start + len(self._block):
            # Shielded, and remembered: a block must not be lost with the attempt that asked for it.
            self._coming = self._coming or asyncio.create_task(self._next_block())
            block = await asyncio.shield(self._coming)
            self._coming = None
            if not block:
                return b""
            self._block_start += len(self._block)
            self._block = block
        start = offset - self._block_start
        return self._block[start : start + MAX_CHUNK_BYTES]

    async def _next_block(self) -> bytes:
        """The next items together, as many as make a block."""
        block = bytearray()
        while len(block) < BLOCK_BYTES and (item := await anext(self._blocks, None)) is not None:
            if not isinstance(item, bytes | bytearray | memoryview):
                raise TypeError(f"an iterable source must yield bytes, but yielded {type(item).__name__}")
            block += item
        return bytes(block)

    async def sha256(self) -> bytes | None:
        return None

    def close(self) -> None:
        if self._coming is not None:
            self._coming.cancel()


async def _in_threads(blocks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """The items of an iterable that may block, such as a pipe."""
    iterator = iter(blocks)
    while (block := await asyncio.to_thread(next, iterator, None)) is not None:
        yield block
