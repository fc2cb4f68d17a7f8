"""Content on its way in: checked as it arrives, kept for a while if the client breaks off, bounded in bytes."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from reformer.v1.document_pb2 import CONTENT_TYPE_TOKEN_IDS, ContentChunk, ContentType
from reformer_server.content import TOKEN_ID_BYTES, Content, ContentKey, DocumentName
from reformer_server.errors import DocumentExistsError, InvalidFieldError, UploadAbortedError, UploadMemoryError

MAX_CHUNK_BYTES = 512 << 10


@dataclass(frozen=True)
class UploadHeader:
    """What will be uploaded, validated. Equal headers with a total size announce the same content."""

    name: DocumentName
    content_type: "ContentType.ValueType"
    total_bytes: int | None
    sha256: bytes | None


class Upload:
    """One content, growing chunk by chunk."""

    def __init__(self, header: UploadHeader, uploads: "Uploads") -> None:
        self.header = header
        self.state = "uploading"
        self.holder: _Holder | None = None  # the call that is sending it
        self.held_until = 0.0  # when its latest call ended
        self.resumable = header.total_bytes is not None
        self._uploads = uploads
        self._data = bytearray()
        self._digest = hashlib.sha256()

    @property
    def nbytes(self) -> int:
        """What has arrived so far."""
        return len(self._data)

    def append(self, chunk: ContentChunk) -> None:
        """Takes the next chunk. Raises InvalidFieldError, and UploadMemoryError if there is no room for it now."""
        if chunk.offset != self.nbytes:
            kind = "leaves a gap" if chunk.offset > self.nbytes else "overlaps"
            raise InvalidFieldError("chunk.offset", f"{chunk.offset:,} {kind}: the next byte is {self.nbytes:,}")
        if not 0 < len(chunk.data) <= MAX_CHUNK_BYTES:
            raise InvalidFieldError("chunk.data", f"must be 1 to {MAX_CHUNK_BYTES:,} bytes, but is {len(chunk.data):,}")
        size = self.nbytes + len(chunk.data)
        limit = self._uploads.max_content_bytes if self.header.total_bytes is None else self.header.total_bytes
        if size > limit:
            raise InvalidFieldError("chunk.data", f"ends at byte {size:,}, but the content ends at {limit:,} at most")
        self._uploads.make_room(len(chunk.data))
        self._data += chunk.data
        self._digest.update(chunk.data)

    def finish(self) -> Content:
        """The content, now that the client says that it is all. Raises InvalidFieldError."""
        header = self.header
        if header.total_bytes is not None and self.nbytes != header.total_bytes:
            raise InvalidFieldError(
                "header.total_bytes", f"is {header.total_bytes:,}, but only {self.nbytes:,} bytes were sent"
            )
        if not self._data:
            raise InvalidFieldError("chunk.data", "the content is empty")
        if header.content_type == CONTENT_TYPE_TOKEN_IDS and self.nbytes % TOKEN_ID_BYTES:
            self.forget()
            raise InvalidFieldError(
                "chunk.data", f"{self.nbytes:,} bytes are no multiple of {TOKEN_ID_BYTES}, an id's size"
            )
        sha256 = self._digest.digest()
        if header.sha256 is not None and sha256 != header.sha256:
            self.forget()
            raise InvalidFieldError("header.sha256", f"is {header.sha256.hex()}, but the content's is {sha256.hex()}")
        return Content(ContentKey(header.name.tenant, header.content_type, sha256), self._data)

    def forget(self) -> None:
        """Nothing is to be resumed: the content has become a document, or can't become one."""
        self.resumable = False


class Uploads:
    """All content that is on its way in."""

    def __init__(
        self,
        *,
        max_content_bytes: int,
        memory_bytes: int,
        retention_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_content_bytes = max_content_bytes
        self._memory_bytes = memory_bytes
        self._retention_seconds = retention_seconds
        self._clock = clock
        self._uploads: dict[DocumentName, Upload] = {}

    @property
    def nbytes(self) -> int:
        """Memory that uploads hold. Any thread may ask."""
        return sum(upload.nbytes for upload in list(self._uploads.values()))

    def state(self, name: DocumentName) -> str | None:
        """What is on its way under this id: "uploading", "prefilling", or None."""
        upload = self._uploads.get(name)
        return upload.state if upload else None

    @asynccontextmanager
    async def hold(self, header: UploadHeader) -> AsyncIterator[Upload]:
        """A fresh upload, or the one to be resumed, for the length of one call.

        A call for the same content takes the upload over: the one before it most likely lost its connection. Unless it
        was told to `forget`, it is kept for resuming, where that is possible.

        Raises:
            DocumentExistsError: another content is being uploaded under this id right now.
            UploadAbortedError: inside of the `with`, if this call's upload was taken over or dropped.
        """
        upload = self._open(header)
        holder = upload.holder = _Holder(header.name.document_id)
        try:
            with holder:
                yield upload
        finally:
            if upload.holder is holder:
                upload.holder = None
                upload.state = "uploading"
                upload.held_until = self._clock()
                if not upload.resumable:
                    self._forget(upload)

    def drop(self, name: DocumentName) -> None:
        """Forgets what is on its way under this id; a call that is sending it ends with UploadAbortedError."""
        upload = self._uploads.get(name)
        if upload is not None:
            self._forget(upload)
            if upload.holder is not None:
                upload.holder.revoke("the document was deleted")
                upload.holder = None

    def sweep(self) -> None:
        """Forgets broken-off uploads that nobody came back to in time."""
        limit = self._clock() - self._retention_seconds
        for upload in self._broken_off():
            if upload.held_until <= limit:
                self._forget(upload)

    def make_room(self, size: int) -> None:
        """Sees that `size` more bytes fit, if need be by forgetting broken-off uploads, oldest first."""
        for upload in self._broken_off():
            if self.nbytes + size <= self._memory_bytes:
                break
            self._forget(upload)
        free = self._memory_bytes - self.nbytes
        if size > free:
            raise UploadMemoryError(size, free)

    def _open(self, header: UploadHeader) -> Upload:
        there = self._uploads.get(header.name)
        if there is not None and there.holder is not None:
            if there.header != header:
                raise DocumentExistsError(header.name.document_id)
            there.holder.revoke("another call took it over")
        if there is not None and there.header == header and there.resumable:
            there.state = "uploading"
            return there
        upload = self._uploads[header.name] = Upload(header, self)
        return upload

    def _forget(self, upload: Upload) -> None:
        if self._uploads.get(upload.header.name) is upload:
            del self._uploads[upload.header.name]

    def _broken_off(self) -> list[Upload]:
        idle = (upload for upload in self._uploads.values() if upload.holder is None)
        return sorted(idle, key=lambda upload: upload.held_until)


class _Holder:
    """The hold of one call on its upload. `revoke` ends the call, as `asyncio.timeout` ends one that is late."""

    def __init__(self, document_id: str) -> None:
        self.document_id = document_id
        self._task = asyncio.current_task()
        self._reason: str | None = None

    def revoke(self, reason: str) -> None:
        assert self._task is not None
        self._reason = reason
        self._task.cancel()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if self._reason is None:
            return
        assert self._task is not None
        self._task.uncancel()
        # GeneratorExit: the call was writing a response, and the interceptor closes its handler.
        if kind is not None and issubclass(kind, asyncio.CancelledError | GeneratorExit):
            raise UploadAbortedError(self.document_id, self._reason) from None
