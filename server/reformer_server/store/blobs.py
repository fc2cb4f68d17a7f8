"""Named bytes below a URL, on any file system that fsspec knows. What is written is there whole, or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from reformer_server.errors import StoreUnavailableError

UNFINISHED = ".unfinished"
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


@dataclass(frozen=True)
class Blob:
    """One entry of a listing."""

    name: str
    size: int
    version: str
    """Changes whenever the content does."""


class BlobWriter(Protocol):
    """A blob that is being written. It ends with either `commit` or `discard`."""

    def write(self, data: bytes | memoryview) -> object:
        """Goes on."""
        ...

    def commit(self) -> None:
        """Gives it its name, with all that was written; it lasts from here on."""
        ...

    def discard(self) -> None:
        """Leaves nothing behind; idempotent, and of no effect after `commit`."""
        ...


class BlobReader(Protocol):
    """A blob that is being read, front to back."""

    def read(self, size: int) -> bytes:
        """The next bytes, as many as there are. Raises StoreUnavailableError."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Blobs:
    """All blobs below one URL. Every method blocks; any thread may call it.

    Whatever the file system has against it is a StoreUnavailableError, but FileNotFoundError where a blob isn't there.
    """

    def __init__(self, url: str) -> None:
        """Raises StoreUnavailableError: the URL is none, its driver isn't installed, or its folder can't be made."""
        self.url = url
        with self._naming_url():
            self._fs, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
            self._root = root.rstrip("/")
            self._folder = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
            if self._folder is not None:
                self._folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)

    @property
    def free_bytes(self) -> int | None:
        """What the disk has room for; None: it is no disk of this machine, and nobody knows."""
        if self._folder is None:
            return None
        with self._naming_url():
            disk = os.statvfs(self._folder)
            return disk.f_bavail * disk.f_frsize

    def writer(self, name: str) -> BlobWriter:
        """Begins a blob, in place of one that has this name."""
        with self._naming_url():
            if self._folder is not None:
                return _Guarded(_LocalWriter(self._folder, name), self)
            return _Guarded(_RemoteWriter(self._fs, f"{self._root}/{name}"), self)

    def write(self, name: str, content: bytes) -> None:
        """Writes a small blob."""
        if self._folder is None:
            with self._naming_url():
                self._fs.pipe_file(f"{self._root}/{name}", content)
            return
        writer = self.writer(name)
        try:
            writer.write(content)
            writer.commit()
        finally:
            writer.discard()

    def open(self, name: str) -> BlobReader:
        """A blob to read from."""
        with self._naming_url():
            return _GuardedReader(self._fs.open(f"{self._root}/{name}", "rb"), self)

    def read(self, name: str, at_most: int) -> bytes:
        """The content of a small blob, cut after so many bytes."""
        with closing(self.open(name)) as reader:
            return reader.read(at_most)

    def delete(self, name: str) -> None:
        """Idempotent."""
        with suppress(FileNotFoundError), self._naming_url():
            self._fs.rm_file(f"{self._root}/{name}")

    def list(self, folder: str = "") -> list[Blob]:
        """All blobs below a folder, at any depth; none, if there is no such folder."""
        with self._naming_url():
            if self._folder is not None:
                return list(_list_local(self._folder, folder))
            self._fs.invalidate_cache()
            found = self._fs.find(f"{self._root}/{folder}".rstrip("/"), detail=True)
        start = len(self._root) + 1
        return [Blob(path[start:], int(facts["size"] or 0), _version(facts)) for path, facts in found.items()]

    @contextmanager
    def _naming_url(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            folder = getattr(self, "_folder", None)
            if folder is not None and not folder.is_dir():  # e.g. a disk that is no longer mounted
                raise StoreUnavailableError(self.url, "the folder is gone") from error
            raise
        except Exception as error:
            raise StoreUnavailableError(self.url, str(error) or type(error).__name__) from error


class _Guarded:
    """A writer whose errors are the store's."""

    def __init__(self, writer: BlobWriter, blobs: Blobs) -> None:
        self._writer, self._blobs = writer, blobs

    def write(self, data: bytes | memoryview) -> None:
        with self._blobs._naming_url():
            self._writer.write(data)

    def commit(self) -> None:
        with self._blobs._naming_url():
            self._writer.commit()

    def discard(self) -> None:
        with suppress(Exception):  # it is unfinished, is never read, and is cleared away some time
            self._writer.discard()


class _GuardedReader:
    """A file whose errors are the store's."""

    def __init__(self, file: Any, blobs: Blobs) -> None:
        self._file, self._blobs = file, blobs

    def read(self, size: int) -> bytes:
        with self._blobs._naming_url():
            content: bytes = self._file.read(size)
            return content

    def close(self) -> None:
        self._file.close()


class _LocalWriter:
    """Under another name first; then synced, renamed, and the folder synced, where the name lies."""

    def __init__(self, root: Path, name: str) -> None:
        self._path = root / name
        for folder in reversed(self._path.relative_to(root).parents[:-1]):
            (root / folder).mkdir(mode=PRIVATE_FOLDER, exist_ok=True)  # never the root: a lost disk's stays lost
        self._unfinished = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}{UNFINISHED}")
        descriptor = os.open(self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
        self._file = open(descriptor, "wb")  # noqa: SIM115
        self.write = self._file.write

    def commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        try:
            self._file.close()  # on a full disk, not even that
        finally:
            self._unfinished.unlink(missing_ok=True)


class _RemoteWriter:
    """An upload, which shows when it is finished. A driver that shows it earlier does no harm: see `discard`."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path, self._committed = fs, path, False
        self._file = fs.open(path, "wb", autocommit=False)
        self.write = self._file.write

    def commit(self) -> None:
        self._file.close()
        self._file.commit()
        self._committed = True

    def discard(self) -> None:
        if not self._committed:
            with suppress(Exception):
                self._file.discard()
            self._fs.rm_file(self._path)


def _list_local(root: Path, folder: str) -> Iterator[Blob]:
    """What fsspec would find, but a folder that can't be read is an error: it isn't an empty one."""

    def check(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or not root.is_dir():
            raise error

    for path, _, names in os.walk(root / folder, onerror=check):
        for name in names:
            file = Path(path, name)
            with suppress(FileNotFoundError):  # deleted since
                facts = file.stat()
                version = f"{facts.st_mtime_ns} {facts.st_ino} {facts.st_size}"
                yield Blob(file.relative_to(root).as_posix(), facts.st_size, version)


def _version(facts: dict[str, Any]) -> str:
    """What file systems say about a change: an object store's tag, or a time and the size."""
    return " ".join(str(facts.get(key)) for key in ("ETag", "etag", "mtime", "LastModified", "created", "size"))
