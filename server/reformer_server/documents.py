"""The documents that can be used: their ids, leases, and the memory that equal contents share."""

import base64
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from reformer_core import Document
from reformer_server.content import ContentKey
from reformer_server.errors import DocumentExistsError, DocumentNotFoundError, DocumentNotReadyError, InvalidFieldError
from reformer_server.metrics import Metrics
from reformer_server.uploads import UploadHeader, Uploads

MAX_REMEMBERED_IDS = 10_000


class SharedDocument:
    """A document of the engine with a count of its users: ids that name it, and calls that are using it."""

    def __init__(
        self, document: Document, free: "Callable[[SharedDocument], None]", notes: tuple[str, ...] = ()
    ) -> None:
        """The creator is the first user; `free` is called after the last one. `notes` say what was changed in it."""
        self.document = document
        self.notes = notes
        self._free = free
        self._users = 1

    def retain(self) -> None:
        """One more user."""
        self._users += 1

    def release(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users == 0:
            self._free(self)


@dataclass
class Entry:
    """A document under an id."""

    document_id: str
    key: ContentKey
    content_bytes: int
    shared: SharedDocument
    create_time: float  # Unix time
    expire_time: float

    @property
    def document(self) -> Document:
        """The engine's document."""
        return self.shared.document


class DocumentRegistry:
    """Id to document. It is used on the event loop only, and `free` is how a document is given back to the engine.

    An id counts as one user of its document; `use` adds one for the length of a call, so that a document that is
    deleted, or whose lease ends, lives on until its readers have finished.
    """

    def __init__(
        self,
        uploads: Uploads,
        metrics: Metrics,
        free: Callable[[Document], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._uploads = uploads
        self._metrics = metrics
        self._free = free
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._by_content: dict[ContentKey, SharedDocument] = {}
        self._expired: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Memory of all documents that are in use, each counted once."""
        return sum(shared.document.nbytes for shared in list(self._by_content.values()))

    def share(self, key: ContentKey, document: Document, notes: tuple[str, ...] = ()) -> SharedDocument:
        """Takes over a new document of the engine; the caller is its first user."""

        def free(shared: SharedDocument) -> None:
            if self._by_content.get(key) is shared:
                del self._by_content[key]
            self._free(shared.document)

        shared = self._by_content[key] = SharedDocument(document, free, notes)
        return shared

    def find(self, key: ContentKey, *, with_scores: bool) -> SharedDocument | None:
        """The document of an equal content, if there is one, whatever its id. Retain it before the next await."""
        self.sweep()
        shared = self._by_content.get(key)
        if shared is not None and with_scores and shared.document.scores is None:
            shared = None
        self._count_lookup(shared)
        return shared

    def check(self, announced: UploadHeader) -> Entry | None:
        """The entry of the announced id, if there is one. Raises DocumentExistsError if its content surely differs."""
        self.sweep()
        entry = self._entries.get(announced.document_id)
        if entry is not None:
            same_type = announced.content_type == entry.key.content_type
            same_size = announced.total_bytes in (None, entry.content_bytes)
            if not (same_type and same_size and announced.sha256 in (None, entry.key.sha256)):
                raise DocumentExistsError(announced.document_id)
        return entry

    def add(
        self, document_id: str, key: ContentKey, content_bytes: int, shared: SharedDocument, lease_seconds: float
    ) -> Entry:
        """Puts a document under an id; the same content again only prolongs the lease. Raises DocumentExistsError."""
        there = self._entries.get(document_id)
        if there is not None and there.key != key:
            raise DocumentExistsError(document_id)
        now = self._clock()
        shared.retain()
        expire_time = now + lease_seconds
        entry = Entry(document_id, key, content_bytes, shared, now, expire_time)
        if there is not None:
            entry.create_time = there.create_time
            entry.expire_time = max(there.expire_time, expire_time)
            there.shared.release()
        self._entries[document_id] = entry
        self._expired.pop(document_id, None)
        return entry

    def get(self, document_id: str) -> Entry:
        """Raises DocumentNotFoundError and DocumentNotReadyError."""
        self.sweep()
        entry = self._entries.get(document_id)
        self._count_lookup(entry)
        if entry is not None:
            return entry
        state = self._uploads.state(document_id)
        if state is not None:
            raise DocumentNotReadyError(document_id, state)
        raise DocumentNotFoundError(document_id, expired=document_id in self._expired)

    @asynccontextmanager
    async def use(self, document_id: str) -> AsyncIterator[Document]:
        """The document for the length of a call, whatever happens to its id meanwhile. Raises like `get`."""
        shared = self.get(document_id).shared
        shared.retain()
        try:
            yield shared.document
        finally:
            shared.release()

    def renew(self, document_id: str, lease_seconds: float) -> Entry:
        """The lease ends `lease_seconds` from now. Raises like `get`."""
        entry = self.get(document_id)
        entry.expire_time = self._clock() + lease_seconds
        return entry

    def delete(self, document_id: str) -> None:
        """Forgets the id and what is on its way under it; no error if there is nothing."""
        self._uploads.drop(document_id)
        if document_id in self._entries:
            self._evict(self._entries[document_id], "deleted")

    def page(self, page_size: int, page_token: str) -> tuple[list[Entry], str]:
        """A page of the documents, oldest first, and the token of the next one. Raises InvalidFieldError."""
        self.sweep()
        after = _read_page_token(page_token) if page_token else (0.0, "")
        entries = sorted(self._entries.values(), key=_page_order)
        entries = [entry for entry in entries if _page_order(entry) > after]
        page = entries[:page_size]
        return page, _write_page_token(page[-1]) if len(entries) > page_size else ""

    def sweep(self) -> None:
        """Forgets documents whose lease has ended; their memory is free for the engine's next command."""
        now = self._clock()
        for entry in [entry for entry in self._entries.values() if entry.expire_time <= now]:
            self._evict(entry, "expired")
            self._expired[entry.document_id] = None
            if len(self._expired) > MAX_REMEMBERED_IDS:
                self._expired.popitem(last=False)

    def _count_lookup(self, found: object | None) -> None:
        self._metrics.lookups.labels("miss" if found is None else "hit").inc()

    def _evict(self, entry: Entry, reason: str) -> None:
        del self._entries[entry.document_id]
        self._metrics.evictions.labels(reason).inc()
        entry.shared.release()


def _page_order(entry: Entry) -> tuple[float, str]:
    return entry.create_time, entry.document_id


def _write_page_token(last: Entry) -> str:
    return base64.urlsafe_b64encode(f"{last.create_time!r} {last.document_id}".encode()).decode()


def _read_page_token(token: str) -> tuple[float, str]:
    try:
        create_time, document_id = base64.urlsafe_b64decode(token.encode()).decode().split(" ")
        return float(create_time), document_id
    except ValueError:
        raise InvalidFieldError(
            "page_token", "is none that ListDocuments gave; leave it out for the first page"
        ) from None
