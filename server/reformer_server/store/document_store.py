"""The document store: contents and the ids that stand for them, below one URL that replicas may share.

    TENANT/contents/CONTENT.json                    the manifest, written last: what has one is there
    TENANT/contents/CONTENT.RANDOM.safetensors      its data
    TENANT/ids/ID.json                              what an id stands for, and how long

Tenants, contents and ids are named by digests: no name of a client's choosing becomes a path, and none can be guessed.
Everything here blocks, and any thread may call it.
"""

import hashlib
import logging
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress

from reformer_core import Document
from reformer_server.errors import StoredDocumentDamagedError, StoreUnavailableError
from reformer_server.store.blobs import Blob, Blobs, BlobWriter
from reformer_server.store.data import DataReader, Shape, head_of
from reformer_server.store.manifest import (
    MAX_BYTES,
    ContentIdentity,
    ContentManifest,
    DocumentRecord,
    Manifest,
    seal,
    unseal,
)

CONTENTS, IDS = "contents", "ids"
OWN_NAME = re.compile(rf"[0-9a-f]{{32}}/({CONTENTS}|{IDS})/[0-9a-f]{{64}}\.[0-9a-z.]+")

logger = logging.getLogger(__name__)


class ContentWriter:
    """A document's data on its way out. It ends with either `commit` or `discard`."""

    def __init__(self, store: "DocumentStore", identity: ContentIdentity, document: Document, notes: tuple[str, ...]):
        shape = Shape.of(document)
        self._store, self._identity, self._notes, self._shape = store, identity, notes, shape
        self._data = f"{identity.digest}.{uuid.uuid4().hex}.safetensors"
        self._digest = hashlib.sha256()
        self._writer: BlobWriter = store.blobs.writer(_content_path(identity, self._data))
        self.write(head_of(document))

    def write(self, data: bytes | memoryview) -> None:
        """The next pages."""
        self._digest.update(data)
        self._writer.write(data)

    def commit(self) -> None:
        """Makes the content readable, in place of an earlier one."""
        shape, identity = self._shape, self._identity
        manifest = ContentManifest(
            identity=identity,
            tokens=shape.tokens,
            has_scores=shape.has_scores,
            notes=self._notes,
            pages=shape.pages,
            page_bytes=shape.page_bytes,
            data=self._data,
            data_bytes=shape.nbytes,
            data_sha256=self._digest.hexdigest(),
        )
        self._writer.commit()
        self._store.blobs.write(_manifest_path(identity), seal(manifest))

    def discard(self) -> None:
        """Leaves nothing behind; idempotent, and of no effect after `commit`."""
        self._writer.discard()


class DocumentStore:
    """See above. Raises StoreUnavailableError from everywhere."""

    def __init__(self, url: str) -> None:
        self.blobs = Blobs(url)
        self._records: dict[str, tuple[str, DocumentRecord | None]] = {}  # by path: version and content
        self._lock = threading.Lock()

    def listing(self, folder: str = "") -> list[Blob]:
        """All that is the store's own: whatever else lies there is somebody else's, to be left alone."""
        return [blob for blob in self.blobs.list(folder) if OWN_NAME.fullmatch(blob.name)]

    # -- contents

    def find(self, identity: ContentIdentity) -> ContentManifest | None:
        """The content, if there is one. Drops it and raises StoredDocumentDamagedError if its manifest is damaged."""
        try:
            manifest = self._read(_manifest_path(identity), ContentManifest)
        except FileNotFoundError:
            return None
        if manifest.identity != identity:
            self.blobs.delete(_manifest_path(identity))
            raise StoredDocumentDamagedError("its manifest is another document's")
        return manifest

    def writer(self, identity: ContentIdentity, document: Document, notes: tuple[str, ...]) -> ContentWriter:
        """Begins to write a document's content."""
        return ContentWriter(self, identity, document, notes)

    def reader(self, manifest: ContentManifest) -> DataReader:
        """Begins to read a content. Raises StoredDocumentDamagedError, also if its data isn't there."""
        try:
            file = self.blobs.open(_content_path(manifest.identity, manifest.data))
        except FileNotFoundError:
            raise StoredDocumentDamagedError("its data is gone") from None
        try:
            return DataReader(file, manifest)
        except BaseException:
            file.close()
            raise

    def drop(self, manifest: ContentManifest) -> None:
        """Deletes a content, unless it has been replaced meanwhile; its data is cleared away by `sweep`. Idempotent."""
        with suppress(StoredDocumentDamagedError):
            if self.find(manifest.identity) == manifest:
                self.blobs.delete(_manifest_path(manifest.identity))

    # -- ids

    def record(self, tenant: str, document_id: str) -> DocumentRecord | None:
        """What an id stands for. Drops it and raises StoredDocumentDamagedError if that can't be read."""
        path = _record_path(tenant, document_id)
        try:
            record = self._read(path, DocumentRecord)
        except FileNotFoundError:
            return None
        if not record.is_of(tenant, document_id):
            self.blobs.delete(path)
            raise StoredDocumentDamagedError("its manifest is another document's")
        return record

    def keep(self, record: DocumentRecord) -> None:
        """Writes what an id stands for, in place of what it stood for."""
        self.blobs.write(_record_path(record.identity.tenant, record.document_id), seal(record))

    def forget(self, tenant: str, document_id: str) -> None:
        """Deletes an id; its content goes later, if no other id stands for it. Idempotent."""
        self.blobs.delete(_record_path(tenant, document_id))

    def records(self, tenant: str) -> list[DocumentRecord]:
        """All ids of a tenant."""
        return [*self.read_records(self.listing(f"{tenant_folder(tenant)}/{IDS}"))]

    def read_records(self, blobs: list[Blob]) -> Iterator[DocumentRecord]:
        """Those of a listing, each read once a version; what is gone or damaged is left out: `record` tells of it."""
        for blob in blobs:
            if f"/{IDS}/" not in blob.name or not blob.name.endswith(".json"):
                continue
            with self._lock:
                version, record = self._records.get(blob.name, ("", None))
            if version != blob.version:
                record = None
                with suppress(FileNotFoundError, StoredDocumentDamagedError):
                    record = unseal(self.blobs.read(blob.name, MAX_BYTES), DocumentRecord)
                with self._lock:
                    self._records[blob.name] = (blob.version, record)
            if record is not None:
                yield record

    def forget_records_but(self, paths: set[str]) -> None:
        """Frees the memory of records that are no longer there; `paths` are those that are."""
        with self._lock:
            self._records = {path: known for path, known in self._records.items() if path in paths}

    def _read(self, path: str, kind: type[Manifest]) -> Manifest:
        try:
            return unseal(self.blobs.read(path, MAX_BYTES), kind)
        except StoredDocumentDamagedError as error:
            logger.error("%s/%s is dropped: %s", self.blobs.url, path, error)
            with suppress(StoreUnavailableError):
                self.blobs.delete(path)
            raise


def tenant_folder(tenant: str) -> str:
    """Where a tenant's documents are."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


def _content_path(identity: ContentIdentity, name: str) -> str:
    return f"{tenant_folder(identity.tenant)}/{CONTENTS}/{name}"


def _manifest_path(identity: ContentIdentity) -> str:
    return _content_path(identity, f"{identity.digest}.json")


def _record_path(tenant: str, document_id: str) -> str:
    return f"{tenant_folder(tenant)}/{IDS}/{hashlib.sha256(document_id.encode()).hexdigest()}.json"
