"""The registry and the uploads by themselves, with a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reformer.v1 import document_pb2
from reformer_server.content import ContentKey
from reformer_server.documents import MAX_REMEMBERED_IDS, DocumentRegistry
from reformer_server.errors import DocumentExistsError, DocumentNotFoundError, UploadAbortedError, UploadMemoryError
from reformer_server.metrics import Metrics
from reformer_server.uploads import UploadHeader, Uploads

TEXT = document_pb2.CONTENT_TYPE_TEXT


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def make_uploads(clock: Clock, *, memory_bytes: int = 100, retention_seconds: float = 60) -> Uploads:
    return Uploads(
        max_content_bytes=memory_bytes, memory_bytes=memory_bytes, retention_seconds=retention_seconds, clock=clock
    )


def document(nbytes: int = 10, scores: object = None) -> SimpleNamespace:
    return SimpleNamespace(nbytes=nbytes, tokens=nbytes, scores=scores)


class Registry(RuleBasedStateMachine):
    """Ids come, go, expire and are read in any order: memory is held exactly as long as somebody can reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.living: list[SimpleNamespace] = []
        self.registry = DocumentRegistry(make_uploads(self.clock), Metrics(), self.living.remove, self.clock)
        self.leases: dict[str, tuple[bytes, float]] = {}  # what should be there: content and end of lease
        self.readers: list[tuple[bytes, Any]] = []
        self.loop = asyncio.new_event_loop()

    @rule(id=st.sampled_from("abc"), content=st.sampled_from([b"x", b"y"]), lease=st.integers(1, 20))
    def create(self, id: str, content: bytes, lease: int) -> None:
        key = ContentKey(TEXT, content)
        shared = self.registry.find(key, with_scores=False)
        mine = None
        if shared is None:
            self.living.append(document())
            shared = mine = self.registry.share(key, self.living[-1])
        there = self.leases.get(id)
        if there is not None and there[0] != content:
            with pytest.raises(DocumentExistsError):
                self.registry.add(id, key, 1, shared, lease)
        else:
            self.registry.add(id, key, 1, shared, lease)
            self.leases[id] = content, max(there[1] if there else 0, self.clock.now + lease)
        if mine is not None:
            mine.release()

    @rule(id=st.sampled_from("abc"))
    def delete(self, id: str) -> None:
        self.registry.delete(id)
        self.leases.pop(id, None)

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        self.registry.sweep()
        self.leases = {id: lease for id, lease in self.leases.items() if lease[1] > self.clock.now}

    @rule(id=st.sampled_from("abc"))
    def read(self, id: str) -> None:
        use = self.registry.use(id)
        if id in self.leases:
            self.loop.run_until_complete(use.__aenter__())
            self.readers.append((self.leases[id][0], use))
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
    def memory_is_what_can_be_reached(self) -> None:
        reachable = {content for content, _ in self.leases.values()} | {content for content, _ in self.readers}
        assert len(self.living) == len(reachable)
        assert self.registry.nbytes == 10 * len(reachable)
        assert len(self.registry) == len(self.leases)


TestRegistry = Registry.TestCase


def test_only_so_many_expired_ids_are_remembered() -> None:
    clock = Clock()
    registry = DocumentRegistry(make_uploads(clock), Metrics(), lambda document: None, clock)
    shared = registry.share(ContentKey(TEXT, b"x"), document())
    for i in range(MAX_REMEMBERED_IDS + 1):
        registry.add(f"d{i}", ContentKey(TEXT, b"x"), 1, shared, 1)
    clock.now += 2
    for id, expired in (("d0", False), ("d1", True), (f"d{MAX_REMEMBERED_IDS}", True)):
        with pytest.raises(DocumentNotFoundError) as caught:
            registry.get(id)
        assert caught.value.expired == expired


async def send(uploads: Uploads, id: str, data: bytes, total: int | None) -> None:
    """A call that sends `data` and breaks off."""
    async with uploads.hold(UploadHeader(id, TEXT, total, None)) as upload:
        upload.append(document_pb2.ContentChunk(offset=upload.nbytes, data=data))


async def test_only_uploads_of_known_size_are_kept() -> None:
    uploads = make_uploads(Clock())
    await send(uploads, "a", b"x" * 10, total=20)
    await send(uploads, "b", b"x" * 10, total=None)
    assert (uploads.state("a"), uploads.state("b")) == ("uploading", None)
    assert uploads.nbytes == 10


async def test_broken_off_uploads_are_forgotten_in_time() -> None:
    clock = Clock()
    uploads = make_uploads(clock)
    await send(uploads, "a", b"x", total=20)
    clock.now += 59
    uploads.sweep()
    assert uploads.state("a")
    clock.now += 1
    uploads.sweep()
    assert uploads.state("a") is None


async def test_broken_off_uploads_make_room_oldest_first() -> None:
    clock = Clock()
    uploads = make_uploads(clock)
    for id in "abc":
        await send(uploads, id, b"x" * 30, total=50)
        clock.now += 1
    await send(uploads, "d", b"x" * 40, total=50)
    assert [bool(uploads.state(id)) for id in "abcd"] == [False, True, True, True]


async def test_running_uploads_are_never_forgotten() -> None:
    uploads = make_uploads(Clock())
    async with uploads.hold(UploadHeader("a", TEXT, 80, None)) as upload:
        upload.append(document_pb2.ContentChunk(data=b"x" * 80))
        with pytest.raises(UploadMemoryError) as caught:
            await send(uploads, "b", b"x" * 30, total=50)
        assert (caught.value.needed_bytes, caught.value.free_bytes) == (30, 20)
        uploads.sweep()
        assert upload.nbytes == 80


@pytest.mark.parametrize("writing", [False, True])
async def test_taken_over_call_ends_wherever_it_is(writing: bool) -> None:
    """Reading the next chunk or, with its handler suspended at a `yield`, writing a response."""
    uploads = make_uploads(Clock())
    header = UploadHeader("a", TEXT, 80, None)
    holding = asyncio.Event()

    async def handler() -> AsyncIterator[None]:
        async with uploads.hold(header):
            holding.set()
            if not writing:
                await asyncio.sleep(10)
            yield

    async def call() -> None:
        async with aclosing(handler()) as responses:
            async for _ in responses:
                await asyncio.sleep(10)

    first = asyncio.create_task(call())
    await holding.wait()
    async with uploads.hold(header):
        with pytest.raises(UploadAbortedError):
            await first
        assert first.cancelling() == 0
    assert uploads.state("a") == "uploading"
