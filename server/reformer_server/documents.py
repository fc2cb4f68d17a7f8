"""The documents that can be used: what each id stands for, and until when; in memory, or in the store."""

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from reformer_server import document_limits
from reformer_server.archive import Archive
from reformer_server.cache import CachedDocument, DocumentCache
from reformer_server.content import ContentKey, DocumentName
from reformer_server.entries import Entry, InUse
from reformer_server.errors import (
    DocumentExistsError,
    DocumentNotFoundError,
    DocumentNotReadyError,
    OtherModelError,
    StoredDocumentDamagedError,
    StoreUnavailableError,
)
from reformer_server.leases import seconds_until_one_ends
from reformer_server.metrics import Metrics
from reformer_server.restores import Restores
from reformer_server.store.manifest import DocumentRecord
from reformer_server.tenants import Limits
from reformer_server.uploads import UploadHeader, Uploads

MAX_REMEMBERED_IDS = 10_000
FRESH_SECONDS = 5.0
"""For so long the store isn't asked again whether another replica has changed a document's lease, or deleted it."""
FRESH_PATIENCE_SECONDS = 1.0
"""How long the answer is waited for: without it, what is known here goes on."""

logger = logging.getLogger(__name__)


class DocumentRegistry:
    """Id to document. It is used on the event loop only; what the store has to say is awaited."""

    def __init__(
        self,
        uploads: Uploads,
        cache: DocumentCache,
        archive: Archive,
        restores: Restores,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._uploads, self._cache, self._archive, self._restores = uploads, cache, archive, restores
        self._metrics, self._clock = metrics, clock
        self.persist: Callable[[Entry], None] = lambda entry: None
        """Is told of every entry that the store doesn't have."""
        self._entries: dict[DocumentName, Entry] = {}
        self._expired: OrderedDict[DocumentName, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def holds(self, entry: Entry) -> bool:
        """Whether it is still what its id stands for."""
        return self._entries.get(entry.name) is entry

    def lose(self, entry: Entry) -> None:
        """Another replica was first to store another content under its id."""
        if self.holds(entry):
            self._leave(entry)

    # -- for uploads

    async def check(self, announced: UploadHeader) -> Entry | None:
        """The entry of the announced id, if there is one. Raises DocumentExistsError if its content surely differs."""
        try:
            entry = await self._look_up(announced.name, fresh=True)
        except (OtherModelError, StoredDocumentDamagedError, StoreUnavailableError):
            return None  # in each case the upload is what helps
        if entry is not None:
            same_type = announced.content_type == entry.key.content_type
            same_size = announced.total_bytes in (None, entry.content_bytes)
            if not (same_type and same_size and announced.sha256 in (None, entry.key.sha256)):
                raise DocumentExistsError(announced.name.document_id)
        return entry

    def check_limits(
        self, name: DocumentName, limits: Limits, key: ContentKey | None = None, memory_bytes: int = 0
    ) -> None:
        """Raises TenantQuotaError if one more document would be more than its tenant may have.

        Args:
            key: its content, which counts only once; None: not known yet, and neither is memory_bytes.
        """
        document_limits.check(name, limits, self._archive, self._entries.values(), self._clock(), key, memory_bytes)

    def add(self, name: DocumentName, content_bytes: int, cached: CachedDocument, lease_seconds: float) -> Entry:
        """Puts a document under an id; the same content again only prolongs the lease. Raises DocumentExistsError."""
        there = self._entries.get(name)
        if there is not None:
            if there.key != cached.key:
                raise DocumentExistsError(name.document_id)
            if there.has_scores or cached.document.scores is None:
                return self.prolong(there, lease_seconds)
        now, document = self._clock(), cached.document
        entry = Entry(
            name,
            cached.key,
            content_bytes,
            tokens=document.tokens,
            memory_bytes=document.nbytes,
            has_scores=document.scores is not None,
            notes=cached.notes,
            create_time=now if there is None else there.create_time,
            expire_time=max(now + lease_seconds, 0.0 if there is None else there.expire_time),
        )
        self._enter(entry)
        self.persist(entry)
        return entry

    def prolong(self, entry: Entry, lease_seconds: float) -> Entry:
        """The lease ends `lease_seconds` from now, or when it does already, if that is later."""
        expire_time = self._clock() + lease_seconds
        if expire_time > entry.expire_time:
            entry.expire_time, entry.stored = expire_time, False
            self.persist(entry)
        return entry

    # -- for everybody

    async def get(self, name: DocumentName) -> Entry:
        """Raises DocumentNotFoundError, DocumentNotReadyError, OtherModelError, and the store's errors."""
        entry = await self._found(name)
        self._metrics.lookups.labels("hit").inc()
        return entry

    @asynccontextmanager
    async def use(self, name: DocumentName) -> AsyncIterator[InUse]:
        """The document for the length of a call, whatever happens to its id meanwhile. Raises like `get`.

        It is restored if need be; if that shows that what was stored is damaged, the document is gone.
        """
        entry = await self._found(name)
        cached = self._cache.get(entry.key, with_scores=entry.has_scores)
        self._metrics.lookups.labels("restored" if cached is None else "hit").inc()
        if cached is not None:
            with self._cache.using(cached):
                yield InUse(cached.document, restored=False)
            return
        try:
            async with self._restores.follow(entry.key) as work:
                cached = await work.result()
                self._cache.retain(cached)
        except StoredDocumentDamagedError:
            if self.holds(entry):  # else another call has told of it, or there is a new one
                self._leave(entry)
                await self._archive.forget(name)
            raise
        try:
            yield InUse(cached.document, restored=True)
        finally:
            self._cache.release(cached)

    async def renew(self, name: DocumentName, lease_seconds: float) -> Entry:
        """The lease ends `lease_seconds` from now, in the store as well. Raises like `get`."""
        entry = await self._found(name, fresh=True)  # else it would bring back what another replica has deleted
        self._metrics.lookups.labels("hit").inc()
        before, entry.expire_time = entry.expire_time, self._clock() + lease_seconds
        if entry.stored:
            try:
                await self._archive.keep(entry, lambda: self.holds(entry))
            except StoreUnavailableError:
                entry.expire_time = before
                raise
        return entry

    async def delete(self, name: DocumentName) -> None:
        """Forgets the id and what is on its way under it; no error if there is nothing."""
        self._uploads.drop(name)
        if name in self._entries:
            self._leave(self._entries[name])
            self._metrics.evictions.labels("deleted").inc()
        await self._archive.forget(name)
        there = self._entries.get(name)
        if there is not None and there.stored:  # somebody looked it up while it was deleted
            self._leave(there)

    async def all_of(self, tenant: str) -> list[Entry]:
        """A tenant's documents, oldest first: those of this process, and those in the store."""
        self.sweep()
        stored = {entry for entry in self._entries.values() if entry.stored}
        records = await self._archive.records(tenant)
        # Of those that were stored before, the store knows more: see `_agree`.
        here = (entry for entry in self._entries.values() if entry.name.tenant == tenant and entry not in stored)
        return self._with(records, here)

    def all(self) -> list[Entry]:
        """Everybody's, oldest first: those of this process, and those in the store as of its last sweep."""
        self.sweep()
        return self._with(self._archive.usage.records, self._entries.values())

    def _with(self, records: Iterable[DocumentRecord], here: Iterable[Entry]) -> list[Entry]:
        """What of these records can be used, and what is here."""
        ours = (each for each in records if self._archive.is_ours(each) and each.expire_time > self._clock())
        entries = {entry.name: entry for entry in map(self._archive.entry_of, ours)}
        entries |= {entry.name: entry for entry in here}
        return sorted(entries.values(), key=lambda entry: (entry.create_time, entry.name))

    def sweep(self) -> int:
        """Forgets documents whose lease has ended, and returns how many: their memory is free at once."""
        now = self._clock()
        ended = [entry for entry in self._entries.values() if entry.expire_time <= now]
        for entry in ended:
            self._leave(entry)
            self._metrics.evictions.labels("expired").inc()
            self._remember_expired(entry.name)
        return len(ended)

    def seconds_until_one_ends(self) -> float:
        """Until the next lease ends, within a minute: then there is more room."""
        return seconds_until_one_ends((entry.expire_time for entry in self._entries.values()), self._clock())

    # -- with the store

    async def _found(self, name: DocumentName, *, fresh: bool = False) -> Entry:
        entry = await self._look_up(name, fresh=fresh)
        if entry is not None:
            return entry
        self._metrics.lookups.labels("miss").inc()
        state = self._uploads.state(name)
        if state is not None:
            raise DocumentNotReadyError(name.document_id, state)
        raise DocumentNotFoundError(name.document_id, expired=name in self._expired)

    async def _look_up(self, name: DocumentName, *, fresh: bool = False) -> Entry | None:
        """`fresh`: the store is asked, even if it was a moment ago; for what depends on its answer."""
        self.sweep()
        entry = self._entries.get(name)
        asked = time.monotonic()
        if entry is not None and not entry.stored:
            return entry
        if entry is not None and not fresh and asked - entry.checked < FRESH_SECONDS:
            return entry
        expire_time = None if entry is None else entry.expire_time
        try:
            if entry is None:
                record = await self._archive.record(name)
            else:
                record = await self._archive.record(name, patience=FRESH_PATIENCE_SECONDS)
        except (StoreUnavailableError, StoredDocumentDamagedError) as error:
            if entry is None or not self.holds(entry):
                raise
            entry.checked = asked  # it is in memory, or can be restored later: no reason to ask in every call
            if isinstance(error, StoredDocumentDamagedError):
                entry.stored = False
                self.persist(entry)
            return entry
        now_there = self._entries.get(name)
        if now_there is not entry or (entry is not None and entry.expire_time != expire_time):
            return now_there  # changed here while the store was asked: that is newer
        return self._agree(entry, record, name)

    def _agree(self, entry: Entry | None, record: DocumentRecord | None, name: DocumentName) -> Entry | None:
        """Takes over what the store says about an id."""
        if entry is not None and (record is None or not _is_same(entry, record, self._archive.key_of(record))):
            self._leave(entry)  # deleted or replaced through another replica
            entry = None
        if record is None:
            return None
        if not self._archive.is_ours(record):
            raise OtherModelError(name.document_id)
        if entry is None:
            if record.expire_time <= self._clock():
                self._remember_expired(name)
                return None
            entry = self._archive.entry_of(record)
            self._enter(entry)
        entry.expire_time, entry.checked = record.expire_time, time.monotonic()
        return entry

    def _enter(self, entry: Entry) -> None:
        self._cache.name(entry.key)
        there = self._entries.get(entry.name)
        self._entries[entry.name] = entry
        self._expired.pop(entry.name, None)
        if there is not None:
            self._cache.unname(there.key)

    def _leave(self, entry: Entry) -> None:
        del self._entries[entry.name]
        self._cache.unname(entry.key)

    def _remember_expired(self, name: DocumentName) -> None:
        self._expired[name] = None
        if len(self._expired) > MAX_REMEMBERED_IDS:
            self._expired.popitem(last=False)


def _is_same(entry: Entry, record: DocumentRecord, key: ContentKey) -> bool:
    """Whether the record, which is of this key, tells of the same document."""
    return (entry.key, entry.has_scores) == (key, record.has_scores)
