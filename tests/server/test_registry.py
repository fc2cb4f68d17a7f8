"""The registry by itself, with a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reformer_server.archive import Archive
from reformer_server.cache import CachedDocument, DocumentCache
from reformer_server.content import ContentKey, DocumentName
from reformer_server.documents import MAX_REMEMBERED_IDS
from reformer_server.errors import (
    DocumentExistsError,
    DocumentNotFoundError,
    StoredDocumentDamagedError,
    TenantQuotaError,
)
from reformer_server.metrics import Metrics
from reformer_server.store.manifest import DocumentRecord
from reformer_server.tenants import Limits
from reformer_server.uploads import UploadHeader
from tests.server.clock import Clock
from tests.server.registry_parts import (
    TEXT,
    A,
    FakeArchive,
    Parts,
    X,
    Y,
    document,
)


class Registry(RuleBasedStateMachine):
    """Ids of two tenants come, go, expire and are read in any order, documents are evicted, the process begins anew.

    What a tenant sees is what it would see without any of the others, and memory is held as long as somebody needs it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.archive = Clock(), FakeArchive()
        self.parts = Parts(self.clock, self.archive)
        self.leases: dict[DocumentName, tuple[bytes, float]] = {}  # what should be there: content and end of lease
        self.readers: list[tuple[ContentKey, Any]] = []
        self.loop = asyncio.new_event_loop()

    names = st.builds(DocumentName, st.sampled_from(["one", "two"]), st.sampled_from("ab"))

    @rule(name=names, content=st.sampled_from([X, Y]), lease=st.integers(1, 20))
    def create(self, name: DocumentName, content: bytes, lease: int) -> None:
        key = ContentKey(name.tenant, TEXT, content)
        there = self.leases.get(name)
        announced = UploadHeader(name, TEXT, 1, content)
        if there is not None and there[0] != content:
            with pytest.raises(DocumentExistsError):
                self.loop.run_until_complete(self.parts.registry.check(announced))
            return
        assert (self.loop.run_until_complete(self.parts.registry.check(announced)) is None) == (there is None)
        self.parts.create(name, key, lease)
        self.leases[name] = content, max(there[1] if there else 0, self.clock.now + lease)

    @rule(name=names)
    def delete(self, name: DocumentName) -> None:
        self.loop.run_until_complete(self.parts.registry.delete(name))
        self.leases.pop(name, None)

    @rule(name=names, lease=st.integers(1, 20))
    def renew(self, name: DocumentName, lease: int) -> None:
        renewing = self.parts.registry.renew(name, lease)
        if name in self.leases:
            entry = self.loop.run_until_complete(renewing)
            self.leases[name] = self.leases[name][0], self.clock.now + lease
            assert entry.expire_time == self.clock.now + lease
        else:
            with pytest.raises(DocumentNotFoundError):
                self.loop.run_until_complete(renewing)

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        self.parts.registry.sweep()
        self.leases = {name: lease for name, lease in self.leases.items() if lease[1] > self.clock.now}

    @rule(nbytes=st.integers(1, 30))
    def evict(self, nbytes: int) -> None:
        before = len(self.parts.living)
        freed = self.parts.cache.evict(nbytes)
        assert freed == 10 * (before - len(self.parts.living))
        unused = {(name.tenant, content) for name, (content, _) in self.leases.items()}
        unused -= {(key.tenant, key.sha256) for key, _ in self.readers}
        assert freed <= 10 * len(unused)

    @rule()
    def restart(self) -> None:
        for _, use in self.readers:
            self.loop.run_until_complete(use.__aexit__(None, None, None))
        self.readers = []
        self.parts = Parts(self.clock, self.archive)

    @rule(name=names)
    def read(self, name: DocumentName) -> None:
        use = self.parts.registry.use(name)
        if name in self.leases:
            in_use = self.loop.run_until_complete(use.__aenter__())
            assert in_use.document in self.parts.living
            self.readers.append((ContentKey(name.tenant, TEXT, self.leases[name][0]), use))
        else:
            with pytest.raises(DocumentNotFoundError):
                self.loop.run_until_complete(use.__aenter__())

    @rule(index=st.integers(0, 5))
    def finish_reading(self, index: int) -> None:
        if index < len(self.readers):
            _, use = self.readers.pop(index)
            self.loop.run_until_complete(use.__aexit__(None, None, None))

    def teardown(self) -> None:
        self.loop.close()

    @invariant()
    def each_tenant_sees_its_own(self) -> None:
        for tenant in ("one", "two"):
            entries = self.loop.run_until_complete(self.parts.registry.all_of(tenant))
            seen = {entry.name: (entry.key.sha256, entry.expire_time) for entry in entries}
            assert seen == {name: lease for name, lease in self.leases.items() if name.tenant == tenant}

    @invariant()
    def memory_is_held_by_somebody(self) -> None:
        named = {(name.tenant, content) for name, (content, _) in self.leases.items()}
        read = {(key.tenant, key.sha256) for key, _ in self.readers}
        assert len(read) <= len(self.parts.living) <= len(named | read)
        assert len(self.parts.cache) == len(self.parts.living)


TestRegistry = Registry.TestCase


async def test_only_so_many_expired_ids_are_remembered() -> None:
    clock = Clock()
    parts = Parts(clock, Archive(FakeArchive()._model))
    for i in range(MAX_REMEMBERED_IDS + 1):
        parts.create(DocumentName("one", f"d{i}"), ContentKey("one", TEXT, X), 1)
    clock.now += 2
    for id, expired in (("d0", False), ("d1", True), (f"d{MAX_REMEMBERED_IDS}", True)):
        with pytest.raises(DocumentNotFoundError) as caught:
            await parts.registry.get(DocumentName("one", id))
        assert caught.value.expired == expired
        with pytest.raises(DocumentNotFoundError) as caught:
            await parts.registry.get(DocumentName("two", id))
        assert not caught.value.expired


async def test_limits_count_ids_once_and_contents_once() -> None:
    parts = Parts(Clock(), FakeArchive())
    x, y = (ContentKey("one", TEXT, content) for content in (X, Y))
    parts.create(DocumentName("one", "a"), x, 9)
    parts.create(DocumentName("one", "b"), x, 9)
    check = parts.registry.check_limits
    new, there = DocumentName("one", "c"), DocumentName("one", "a")
    with pytest.raises(TenantQuotaError, match=r"3 documents, but 2 are allowed"):
        check(new, Limits(documents=2))
    check(there, Limits(documents=2))
    check(DocumentName("two", "c"), Limits(documents=1))
    check(new, Limits(document_bytes=10), x, 10)
    with pytest.raises(TenantQuotaError, match=r"20 document bytes, but 19 are allowed"):
        check(new, Limits(document_bytes=19), y, 10)
    check(DocumentName("two", "c"), Limits(document_bytes=10), y, 10)


async def test_what_another_replica_does_is_seen_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, archive = Clock(), FakeArchive()
    here, there = Parts(clock, archive), Parts(clock, archive)
    name, key = DocumentName("one", "a"), ContentKey("one", TEXT, X)
    here.create(name, key, 10)
    async with there.registry.use(name) as in_use:
        assert in_use.restored
    await there.registry.renew(name, 100)
    monkeypatch.setattr("reformer_server.documents.FRESH_SECONDS", 0)
    assert (await here.registry.get(name)).expire_time == clock.now + 100
    await there.registry.delete(name)
    there.create(name, ContentKey("one", TEXT, Y), 10)
    assert (await here.registry.get(name)).key.sha256 == Y
    assert not here.living
    await there.registry.delete(name)
    with pytest.raises(DocumentNotFoundError):
        await here.registry.get(name)


def scored_document() -> Any:
    return SimpleNamespace(nbytes=14, tokens=10, scores=object())


def test_a_document_with_scores_isnt_replaced_by_one_without() -> None:
    """Both readings may have been under way at the same time, or a restore of what is stored without."""
    freed: list[Any] = []
    cache = DocumentCache(lambda cached: freed.append(cached.document), Metrics())
    key = ContentKey("one", TEXT, X)
    cache.name(key)
    scored, plain = scored_document(), document()
    cache.release(cache.put(key, scored))
    cached = cache.put(key, plain, stored=True)
    assert cached.document is scored
    assert not cached.stored
    assert freed == [plain]
    cache.release(cached)
    assert cache.get(key, with_scores=True) is cached


async def test_scores_that_another_replica_has_added_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_server.documents.FRESH_SECONDS", 0.0)
    archive = FakeArchive()
    here = Parts(Clock(), archive)
    here.create(A, ContentKey("one", TEXT, X), 60)
    assert not (await here.registry.get(A)).has_scores
    archive.kept[A] = archive.kept[A].model_copy(update={"has_scores": True})
    assert (await here.registry.get(A)).has_scores
    before = here.cache.get(ContentKey("one", TEXT, X))
    async with here.registry.use(A) as in_use:
        assert in_use.restored
        assert before is None or in_use.document is not before.document


async def test_what_is_looked_up_while_it_is_deleted_is_gone_afterwards() -> None:
    clock, archive = Clock(), FakeArchive()
    Parts(clock, archive).create(A, ContentKey("one", TEXT, X), 60)
    registry = Parts(clock, archive).registry  # of a process that has only the store

    async def forget(name: DocumentName) -> None:
        assert (await registry.get(name)).stored
        del archive.kept[name]

    archive.forget = forget  # type: ignore[method-assign]
    await registry.delete(A)
    with pytest.raises(DocumentNotFoundError):
        await registry.get(A)


async def test_an_id_that_is_damaged_in_the_store_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it said is known here."""
    monkeypatch.setattr("reformer_server.documents.FRESH_SECONDS", 0.0)
    archive = FakeArchive()
    here = Parts(Clock(), archive)
    here.create(A, ContentKey("one", TEXT, X), 60)
    record = archive.record

    async def damaged(name: DocumentName, *, patience: float = 1) -> DocumentRecord | None:
        archive.record = record  # type: ignore[method-assign]
        del archive.kept[name]
        raise StoredDocumentDamagedError("zeros")

    archive.record = damaged  # type: ignore[method-assign]
    assert await here.registry.get(A)
    assert (await here.registry.get(A)).stored
    assert A in archive.kept


async def test_what_is_damaged_tells_nothing_about_what_has_taken_its_place() -> None:
    """Scores were asked for while it was being restored without."""
    archive = FakeArchive()
    here = Parts(Clock(), archive)
    key = ContentKey("one", TEXT, X)
    here.create(A, key, 60)
    here.cache.evict(10)

    class Damaged:
        @asynccontextmanager
        async def follow(self, key: ContentKey) -> AsyncIterator[Any]:
            async def result() -> CachedDocument:
                here.living.append(scored_document())
                cached = here.cache.put(key, here.living[-1], stored=True)
                here.registry.add(A, 1, cached, 60)
                here.cache.release(cached)
                raise StoredDocumentDamagedError("a bit")

            yield SimpleNamespace(result=result)

    here.registry._restores = Damaged()  # type: ignore[assignment]
    with pytest.raises(StoredDocumentDamagedError):
        async with here.registry.use(A):
            pass
    async with here.registry.use(A) as in_use:
        assert in_use.document.scores is not None


async def test_documents_whose_lease_has_ended_count_no_more() -> None:
    clock, archive = Clock(), FakeArchive()
    Parts(clock, archive).create(A, ContentKey("one", TEXT, X), 60)
    archive.known = lambda tenant: list(archive.kept.values())  # type: ignore[method-assign]
    registry = Parts(clock, archive).registry
    other = DocumentName("one", "b")
    with pytest.raises(TenantQuotaError):
        registry.check_limits(other, Limits(documents=1))
    clock.now += 61
    registry.check_limits(other, Limits(documents=1))
