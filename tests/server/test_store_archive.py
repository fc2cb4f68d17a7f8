"""The store behind the event loop: callers that leave, and a disk that hangs."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reformer_server.content import ContentKey, DocumentName
from reformer_server.entries import Entry
from reformer_server.errors import StoreUnavailableError
from reformer_server.metrics import Metrics
from reformer_server.store.document_store import DocumentStore
from reformer_server.store_archive import StoreArchive
from tests.server.store.stored import MODEL

A = DocumentName("one", "a")
KEY = ContentKey("one", 1, b"x" * 32)
QUOTA = 1000


class Gate:
    """A method that waits on its thread until it is let go."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, *args: Any) -> Any:
        self.entered.set()
        self.open.wait()
        return self._method(*args)


@pytest.fixture
def store(tmp_path: Path) -> DocumentStore:
    return DocumentStore(str(tmp_path / "store"))


@pytest.fixture
async def archive(store: DocumentStore) -> StoreArchive:
    return StoreArchive(MODEL, store, QUOTA, Metrics())


@pytest.fixture
def gate(store: DocumentStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Gate]]:
    gates = []

    def gate(method: str) -> Gate:
        gates.append(Gate(getattr(store, method)))
        monkeypatch.setattr(store, method, gates[-1])
        return gates[-1]

    yield gate
    for each in gates:
        each.open.set()


def entry(expire_time: float = 1e10) -> Entry:
    return Entry(A, KEY, 10, 10, 10, False, (), create_time=1.0, expire_time=expire_time)


async def cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()


async def test_a_deletion_whose_caller_left_comes_before_what_follows(
    archive: StoreArchive, gate: Callable[[str], Gate]
) -> None:
    """Its thread goes on: else it would delete what has been created since."""
    forget = gate("forget")
    deleting = asyncio.create_task(archive.forget(A))
    await asyncio.to_thread(forget.entered.wait)
    await cancelled(deleting)
    keeping = asyncio.create_task(archive.keep(entry(), lambda: True))
    await asyncio.sleep(0.05)
    assert not keeping.done()
    forget.open.set()
    await keeping
    assert await archive.record(A) is not None


async def test_a_renewal_whose_caller_left_comes_before_a_deletion(
    archive: StoreArchive, gate: Callable[[str], Gate]
) -> None:
    keep = gate("keep")
    renewing = asyncio.create_task(archive.keep(entry(), lambda: True))
    await asyncio.to_thread(keep.entered.wait)
    await cancelled(renewing)
    deleting = asyncio.create_task(archive.forget(A))
    await asyncio.sleep(0.05)
    keep.open.set()
    await deleting
    assert await archive.record(A) is None


async def test_a_caller_that_left_holds_no_promise(archive: StoreArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, may_go = threading.Event(), threading.Event()

    def free_bytes(blobs: Any) -> int:
        entered.set()
        may_go.wait()
        return 10 * QUOTA

    monkeypatch.setattr("reformer_server.store.blobs.Blobs.free_bytes", property(free_bytes))
    promising = asyncio.create_task(archive.promise(KEY, QUOTA))
    await asyncio.to_thread(entered.wait)
    await cancelled(promising)
    may_go.set()
    await archive.run(lambda: None)
    await archive.promise(ContentKey("one", 1, b"y" * 32), QUOTA)


async def test_a_store_that_doesnt_answer_is_unavailable(
    archive: StoreArchive, gate: Callable[[str], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = gate("record")
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        await archive.record(A, patience=0.1)
    assert caught.value.reason == "no answer within 0.1 s"
    with pytest.raises(StoreUnavailableError):
        await archive.run(lambda: record(*A), patience=0.1)
    assert time.monotonic() - began < 5
    record.open.set()
    assert await archive.record(A) is None


async def test_a_deleted_id_no_longer_counts_for_its_tenant(archive: StoreArchive) -> None:
    await archive.keep(entry(), lambda: True)
    await archive.run(archive._housekeeping.sweep)
    assert [record.document_id for record in archive.known("one")] == ["a"]
    await archive.forget(A)
    assert archive.known("one") == []
