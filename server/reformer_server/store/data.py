"""The data of a stored document: one safetensors file of its token ids, its scores and its pages, read and written in
slices, so that no document has to be in memory twice.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from reformer_core import Document
from reformer_server.errors import StoredDocumentDamagedError
from reformer_server.store.blobs import BlobReader
from reformer_server.store.manifest import ContentManifest

SLICE_BYTES = 8 << 20
HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class Shape:
    """What the file's size follows from."""

    tokens: int
    has_scores: bool
    pages: int
    page_bytes: int

    @classmethod
    def of(cls, document: Document) -> "Shape":
        """A document's."""
        return cls(document.tokens, document.scores is not None, document.page_count, document.pool.layout.page_bytes)

    @property
    def slice_pages(self) -> int:
        """Pages that go together."""
        return max(SLICE_BYTES // self.page_bytes, 1)

    @property
    def header(self) -> bytes:
        """The file's beginning: length and JSON, as safetensors defines them."""
        tensors = [("token_ids", "I32", [self.tokens], 4 * self.tokens)]
        if self.has_scores:
            tensors.append(("scores", "F32", [self.tokens], 4 * self.tokens))
        tensors.append(("pages", "U8", [self.pages, self.page_bytes], self.pages * self.page_bytes))
        entries, start = {}, 0
        for name, dtype, shape, size in tensors:
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
            start += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % HEADER_ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return len(self.header) + 4 * self.tokens * (2 if self.has_scores else 1) + self.pages * self.page_bytes


def head_of(document: Document) -> bytes:
    """The file up to its pages."""
    scores = b"" if document.scores is None else document.scores.numpy().tobytes()
    return Shape.of(document).header + document.token_ids.numpy().tobytes() + scores


class DataReader:
    """A stored document's data, front to back. Its methods block, and raise StoreUnavailableError."""

    def __init__(self, file: BlobReader, manifest: ContentManifest) -> None:
        """Raises StoredDocumentDamagedError if the file's beginning isn't what the manifest says."""
        self.manifest = manifest
        self._file, self._digest = file, hashlib.sha256()
        self._shape = shape = Shape(manifest.tokens, manifest.has_scores, manifest.pages, manifest.page_bytes)
        if shape.nbytes != manifest.data_bytes or self._read(len(shape.header)) != shape.header:
            raise StoredDocumentDamagedError("its data isn't what its manifest says")
        self.token_ids = torch.from_numpy(np.frombuffer(self._read(4 * shape.tokens), "<i4").copy())
        self.scores: torch.Tensor | None = None
        if shape.has_scores:
            self.scores = torch.from_numpy(np.frombuffer(self._read(4 * shape.tokens), "<f4").copy())

    def slices(self) -> Iterator[torch.Tensor]:
        """Its pages, uint8 [k, page bytes]; the last ones only when the digest of all was right.

        Raises StoredDocumentDamagedError.
        """
        shape = self._shape
        for first in range(0, shape.pages, shape.slice_pages):
            count = min(shape.slice_pages, shape.pages - first)
            content = bytearray(self._read(count * shape.page_bytes))
            if first + count == shape.pages:
                self._check()
            yield torch.frombuffer(content, dtype=torch.uint8).view(count, shape.page_bytes)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise StoredDocumentDamagedError("its data ends too early")
        self._digest.update(data)
        return data

    def _check(self) -> None:
        if self._digest.hexdigest() != self.manifest.data_sha256:
            raise StoredDocumentDamagedError("its data isn't what was written")
