"""What is in the store altogether: how much, for whom, and what nobody needs any more."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from reformer_server.errors import StoredDocumentDamagedError, StoreFullError
from reformer_server.leases import seconds_until_one_ends
from reformer_server.store.blobs import UNFINISHED, Blob
from reformer_server.store.document_store import CONTENTS, DocumentStore
from reformer_server.store.manifest import DocumentRecord

GRACE_SECONDS = 60.0
"""How long what is of no use is left alone: an id for a content may be on its way, here or on another replica; and a
lease that has ended here may still run by another replica's clock, and be prolonged there."""
UNFINISHED_SECONDS = 3600.0
"""The same for files that are being written."""


@dataclass(frozen=True)
class Usage:
    """What the store holds for ids whose lease runs."""

    nbytes: int = 0
    records: tuple[DocumentRecord, ...] = ()

    def of_tenant(self, tenant: str) -> list[DocumentRecord]:
        """A tenant's ids."""
        return [record for record in self.records if record.identity.tenant == tenant]


@dataclass
class Housekeeping:
    """Counts the store's bytes, promises some to documents to come, and clears away what is of no use.

    `sweep` blocks; the rest doesn't. Any thread may call it.
    """

    store: DocumentStore
    quota_bytes: int | None
    """None: what the disk has room for."""
    clock: Callable[[], float] = time.time
    grace_seconds: float = GRACE_SECONDS
    usage: Usage = Usage()
    _promised: Counter[str] = field(default_factory=Counter)
    _useless_since: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def promise(self, content: str, nbytes: int, disk_bytes: int | None = None) -> None:
        """Sets bytes aside for a content that is to be written. Raises StoreFullError.

        Args:
            disk_bytes: what the disk has room for, as `Blobs.free_bytes`.
        """
        with self._lock:
            promised = self._promised.total()
            frees = [] if self.quota_bytes is None else [self.quota_bytes - self.usage.nbytes - promised]
            frees += [] if disk_bytes is None else [disk_bytes - promised]
            if frees and nbytes > min(frees):
                ends = (record.expire_time for record in self.usage.records)
                raise StoreFullError(nbytes, max(min(frees), 0), seconds_until_one_ends(ends, self.clock()))
            self._promised[content] = nbytes

    def settle(self, content: str, *, written_bytes: int) -> None:
        """What was promised is written, or won't be."""
        with self._lock:
            self._promised.pop(content, None)
            self.usage = replace(self.usage, nbytes=self.usage.nbytes + written_bytes)

    def forgotten(self, tenant: str, document_id: str) -> None:
        """An id was deleted: its tenant may have another one at once."""
        with self._lock:
            records = (each for each in self.usage.records if not each.is_of(tenant, document_id))
            self.usage = replace(self.usage, records=tuple(records))

    def sweep(self) -> None:
        """Looks at everything: drops ids whose lease has ended, and contents that no id stands for any more.

        Replicas may do so at the same time. Raises StoreUnavailableError.
        """
        now = self.clock()
        blobs, records = self._look(now)
        useless = self._useless(blobs, records)
        if due := self._due(useless, now):
            # Looking takes a while, in which an id may have come to stand for a content again.
            blobs, records = self._look(now)
            useless = self._useless(blobs, records)
            for blob in due & useless:
                self.store.blobs.delete(blob.name)
        nbytes = sum(blob.size for blob in blobs if f"/{CONTENTS}/" in blob.name and blob not in useless)
        with self._lock:
            self.usage = Usage(nbytes, tuple(records))

    def _look(self, now: float) -> tuple[list[Blob], list[DocumentRecord]]:
        """All blobs, and the ids whose lease runs; the others are dropped after a while."""
        blobs = self.store.listing()
        self.store.forget_records_but({blob.name for blob in blobs})
        records = []
        for listed in self.store.read_records(blobs):
            record: DocumentRecord | None = listed
            if now - listed.expire_time >= self.grace_seconds:
                record = self._unless_ended(listed, now)
            if record is not None and record.expire_time > now:
                records.append(record)
        return blobs, records

    def _unless_ended(self, listed: DocumentRecord, now: float) -> DocumentRecord | None:
        """What an id stands for by now, if its lease has been prolonged since; else it is dropped."""
        tenant, document_id = listed.identity.tenant, listed.document_id
        with suppress(StoredDocumentDamagedError):
            record = self.store.record(tenant, document_id)
            if record is not None and record.expire_time > now:
                return record
            self.store.forget(tenant, document_id)
        return None

    def _useless(self, blobs: Sequence[Blob], records: Sequence[DocumentRecord]) -> set[Blob]:
        """What is unfinished, of a content that no id stands for, or data in whose place there is other data."""
        needed = {record.identity.digest: record.identity for record in records}
        useless, data_of = set(), defaultdict(list)
        for blob in blobs:
            path = PurePosixPath(blob.name)
            content = path.name.partition(".")[0]
            if blob.name.endswith(UNFINISHED) or (path.parent.name == CONTENTS and content not in needed):
                useless.add(blob)
            elif path.suffix == ".safetensors":
                data_of[content].append(blob)
        for content, data in data_of.items():
            if len(data) > 1:
                with suppress(StoredDocumentDamagedError):
                    manifest = self.store.find(needed[content])
                    useless |= {blob for blob in data if manifest and not blob.name.endswith(f"/{manifest.data}")}
        return useless

    def _due(self, useless: set[Blob], now: float) -> set[Blob]:
        """What has been of no use for long enough; what is so for the first time is remembered."""
        self._useless_since = since = {blob.name: self._useless_since.get(blob.name, now) for blob in useless}
        return {blob for blob in useless if now - since[blob.name] >= self._patience(blob)}

    def _patience(self, blob: Blob) -> float:
        return UNFINISHED_SECONDS if blob.name.endswith(UNFINISHED) else self.grace_seconds
