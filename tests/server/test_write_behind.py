"""Writing behind, with a store and an engine that do what a test says."""

import asyncio
from types import SimpleNamespace
from typing import Any

from reformer_server.cache import DocumentCache
from reformer_server.content import ContentKey, DocumentName
from reformer_server.entries import Entry
from reformer_server.metrics import Metrics
from reformer_server.write_behind import WriteBehind

KEY = ContentKey("one", 1, b"x" * 32)


class SlowArchive:
    """Says nothing before it may, and calls `then` when an id is written."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked = asyncio.Event()
        self.kept: list[float] = []
        self.then = lambda: None

    async def find(self, key: ContentKey) -> Any:
        self.asked.set()
        await self.may_answer.wait()
        return SimpleNamespace(has_scores=False)

    async def keep(self, entry: Entry, wanted: Any) -> None:
        self.kept.append(entry.expire_time)
        entry.stored = True
        self.then()

    def settle(self, key: ContentKey, *, written_bytes: int = 0) -> None:
        pass


def entry() -> Entry:
    return Entry(DocumentName("one", "a"), KEY, 10, 10, 10, False, (), create_time=0.0, expire_time=100.0)


def writing_to(archive: Any, cache: DocumentCache) -> WriteBehind:
    """What is written is wanted."""
    return WriteBehind(
        SimpleNamespace(),  # type: ignore[arg-type]
        archive,
        cache,
        holds=lambda entry: True,
        lose=lambda entry: None,
        metrics=Metrics(),
    )


async def test_what_is_being_looked_up_for_writing_stays_in_memory() -> None:
    """Else pages of other documents would be written, which have taken its place."""
    freed: list[Any] = []
    cache = DocumentCache(freed.append, Metrics())
    archive: Any = SlowArchive()
    write_behind = writing_to(archive, cache)
    document: Any = SimpleNamespace(nbytes=10, tokens=10, scores=None)
    cache.name(KEY)
    cache.release(cache.put(KEY, document, stored=True))
    write_behind.persist(entry())
    await archive.asked.wait()
    assert cache.evict(1) == 0
    archive.may_answer.set()
    await write_behind.drain()
    assert cache.evict(1) == 10
    assert archive.kept == [100.0]


async def test_a_lease_prolonged_just_when_it_was_written_is_written_too() -> None:
    archive: Any = SlowArchive()
    cache = DocumentCache(lambda cached: None, Metrics())
    write_behind = writing_to(archive, cache)
    prolonged = entry()

    def prolong() -> None:
        archive.then = lambda: None
        prolonged.expire_time, prolonged.stored = 200.0, False
        write_behind.persist(prolonged)

    archive.then = lambda: asyncio.get_running_loop().call_soon(prolong)
    write_behind.persist(prolonged)
    await write_behind.drain()
    assert archive.kept == [100.0, 200.0]
    assert len(write_behind) == 0
