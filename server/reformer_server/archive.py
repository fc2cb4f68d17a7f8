"""The store as the event loop sees it, if there is one."""

from collections.abc import Callable, Sequence

from reformer_server.content import ContentKey, DocumentName
from reformer_server.entries import Entry
from reformer_server.store.housekeeping import Usage
from reformer_server.store.manifest import ContentIdentity, ContentManifest, DocumentRecord, ModelIdentity

PATIENCE_SECONDS = 30.0  # with a store that doesn't answer


class Archive:
    """Keeps nothing: documents live in memory only. `StoreArchive` overrides it where there is a store."""

    keeps = False

    def __init__(self, model: ModelIdentity) -> None:
        """`model`: whose documents these are."""
        self._model = model

    def identity(self, key: ContentKey) -> ContentIdentity:
        """What a content is for the store."""
        return ContentIdentity(
            tenant=key.tenant, content_type=key.content_type, sha256=key.sha256.hex(), model=self._model
        )

    def is_ours(self, record: DocumentRecord) -> bool:
        """Whether this model can use it."""
        return record.identity.model == self._model

    def record_of(self, entry: Entry) -> DocumentRecord:
        """What an entry is for the store."""
        return DocumentRecord(
            document_id=entry.name.document_id,
            identity=self.identity(entry.key),
            content_bytes=entry.content_bytes,
            tokens=entry.tokens,
            memory_bytes=entry.memory_bytes,
            has_scores=entry.has_scores,
            notes=entry.notes,
            create_time=entry.create_time,
            expire_time=entry.expire_time,
        )

    def entry_of(self, record: DocumentRecord) -> Entry:
        """The reverse of `record_of`."""
        return Entry(
            DocumentName(record.identity.tenant, record.document_id),
            self.key_of(record),
            record.content_bytes,
            tokens=record.tokens,
            memory_bytes=record.memory_bytes,
            has_scores=record.has_scores,
            notes=record.notes,
            create_time=record.create_time,
            expire_time=record.expire_time,
            stored=True,
        )

    @staticmethod
    def key_of(record: DocumentRecord) -> ContentKey:
        """The content that a record's id stands for."""
        identity = record.identity
        return ContentKey(identity.tenant, identity.content_type, bytes.fromhex(identity.sha256))  # type: ignore[arg-type]

    @property
    def usage(self) -> Usage:
        """What is kept, as of the last sweep."""
        return Usage()

    def known(self, tenant: str) -> Sequence[DocumentRecord]:
        """A tenant's ids, as of the last sweep."""
        return self.usage.of_tenant(tenant)

    async def records(self, tenant: str) -> Sequence[DocumentRecord]:
        """A tenant's ids, as of now. Raises StoreUnavailableError, like all that follow."""
        return ()

    async def record(self, name: DocumentName, *, patience: float = PATIENCE_SECONDS) -> DocumentRecord | None:
        """What an id stands for, if the store says so in time. Raises StoredDocumentDamagedError."""
        return None

    async def keep(self, entry: Entry, wanted: Callable[[], bool]) -> None:
        """Writes what an id stands for, if `wanted` still says so when its turn comes.

        Raises DocumentExistsError if another replica was first to store another content under a new id.
        """

    async def forget(self, name: DocumentName) -> None:
        """Deletes an id; idempotent."""

    async def promise(self, key: ContentKey, nbytes: int) -> None:
        """Sets bytes aside for a content to come. Raises StoreFullError."""

    def settle(self, key: ContentKey, *, written_bytes: int = 0) -> None:
        """What was promised is written, or won't be."""

    async def find(self, key: ContentKey) -> ContentManifest | None:
        """The content. Raises StoredDocumentDamagedError."""
        return None

    async def drop(self, manifest: ContentManifest) -> None:
        """Deletes a content, unless there is another one in its place by now; idempotent."""

    async def keep_house(self) -> None:
        """Sweeps again and again, until it is cancelled."""

    def close(self) -> None:
        """Lets threads end."""
