"""A registry by itself, on a store that is always there, for tests with a clock that they move."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from reformer.v1 import document_pb2
from reformer_server.archive import Archive
from reformer_server.cache import CachedDocument, DocumentCache
from reformer_server.content import ContentKey, DocumentName
from reformer_server.documents import DocumentRegistry
from reformer_server.entries import Entry
from reformer_server.metrics import Metrics
from reformer_server.store.manifest import DocumentRecord, ModelIdentity
from reformer_server.uploads import Uploads
from tests.server.clock import Clock

TEXT = document_pb2.CONTENT_TYPE_TEXT
A = DocumentName("one", "a")
X, Y = b"x" * 32, b"y" * 32


def make_uploads(clock: Clock, *, memory_bytes: int = 100, retention_seconds: float = 60) -> Uploads:
    return Uploads(
        max_content_bytes=memory_bytes, memory_bytes=memory_bytes, retention_seconds=retention_seconds, clock=clock
    )


def document() -> Any:
    return SimpleNamespace(nbytes=10, tokens=10, scores=None)


class FakeArchive(Archive):
    """A store that is always there, and has everything at once."""

    keeps = True

    def __init__(self) -> None:
        model = ModelIdentity(weights="0" * 64, tokenizer="1" * 64, hashing="2" * 64, pages="float32 256")
        super().__init__(model)
        self.kept: dict[DocumentName, DocumentRecord] = {}

    async def record(self, name: DocumentName, *, patience: float = 1) -> DocumentRecord | None:
        return self.kept.get(name)

    async def records(self, tenant: str) -> list[DocumentRecord]:
        return [record for name, record in self.kept.items() if name.tenant == tenant]

    async def keep(self, entry: Entry, wanted: Callable[[], bool]) -> None:
        self.persist(entry)

    async def forget(self, name: DocumentName) -> None:
        self.kept.pop(name, None)

    def persist(self, entry: Entry) -> None:
        self.kept[entry.name] = self.record_of(entry)
        entry.stored = True


class FakeRestores:
    """Puts back at once what is asked for."""

    def __init__(self, cache: DocumentCache, living: list[Any]) -> None:
        self._cache, self._living = cache, living

    @asynccontextmanager
    async def follow(self, key: ContentKey) -> AsyncIterator[Any]:
        self._living.append(document())
        cached = self._cache.put(key, self._living[-1], stored=True)

        async def result() -> CachedDocument:
            return cached

        yield SimpleNamespace(result=result)
        self._cache.release(cached)


class Parts:
    """A registry of one process, with what it is made of; `archive` outlives it."""

    def __init__(self, clock: Clock, archive: Archive) -> None:
        self.living: list[Any] = []
        metrics = Metrics()
        self.cache = DocumentCache(lambda cached: self.living.remove(cached.document), metrics, clock)
        restores: Any = FakeRestores(self.cache, self.living)
        self.registry = DocumentRegistry(make_uploads(clock), self.cache, archive, restores, metrics, clock)
        if isinstance(archive, FakeArchive):
            self.registry.persist = archive.persist

    def create(self, name: DocumentName, key: ContentKey, lease_seconds: float) -> None:
        cached = self.cache.get(key)
        if cached is None:
            self.living.append(document())
            cached = self.cache.put(key, self.living[-1], stored=True)
        else:
            self.cache.retain(cached)
        try:
            self.registry.add(name, 1, cached, lease_seconds)
        finally:
            self.cache.release(cached)
