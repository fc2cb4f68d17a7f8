"""The store's bytes: counted, promised, and cleared of what nobody needs."""

from collections.abc import Callable

import pytest

from reformer_server.errors import StoreFullError
from reformer_server.store.blobs import UNFINISHED, Blob
from reformer_server.store.document_store import DocumentStore
from reformer_server.store.housekeeping import UNFINISHED_SECONDS, Housekeeping
from tests.server.clock import Clock
from tests.server.store.stored import identity, record, small_document, write


@pytest.fixture
def clock() -> Clock:
    return Clock(1500.0)


@pytest.fixture
def housekeeping(store: DocumentStore, clock: Clock) -> Housekeeping:
    return Housekeeping(store, 1_000_000, clock)


def names(store: DocumentStore, condition: Callable[[str], bool] = lambda name: True) -> list[str]:
    return [blob.name for blob in store.blobs.list() if condition(blob.name)]


def test_what_an_id_stands_for_stays(store: DocumentStore, housekeeping: Housekeeping, clock: Clock) -> None:
    write(store, identity(), small_document())
    store.keep(record("a"))
    store.keep(record("b", expire_time=5000.0))
    before = set(names(store))
    for _ in range(5):
        housekeeping.sweep()
        clock.now += 90
    assert set(names(store)) == before
    assert {found.document_id for found in housekeeping.usage.of_tenant("one")} == {"a", "b"}
    assert housekeeping.usage.of_tenant("two") == []
    clock.now = 2000.0  # the first lease ends
    for _ in range(3):
        housekeeping.sweep()
        clock.now += 90
    assert store.record("one", "a") is None
    assert store.record("one", "b") is not None
    assert store.find(identity()) is not None


def test_an_id_whose_lease_has_just_ended_is_left_alone(
    store: DocumentStore, housekeeping: Housekeeping, clock: Clock
) -> None:
    """By another replica's clock it may still run, and be prolonged there."""
    write(store, identity(), small_document())
    store.keep(record("a", expire_time=clock.now - 1))
    for _ in range(2):
        housekeeping.sweep()
        assert housekeeping.usage.records == (), "it counts no more"
        assert store.record("one", "a") is not None
        clock.now += housekeeping.grace_seconds - 2
    housekeeping.sweep()
    assert store.record("one", "a") is None


def test_a_content_without_an_id_goes_after_a_while(
    store: DocumentStore, housekeeping: Housekeeping, clock: Clock
) -> None:
    """An id for it may be on its way, and then it stays."""
    document = small_document()
    write(store, identity(1), document)
    write(store, identity(2), document)
    housekeeping.sweep()
    clock.now += housekeeping.grace_seconds / 2
    store.keep(record("b", identity(2)))
    housekeeping.sweep()
    assert store.find(identity(1)) is not None
    clock.now += housekeeping.grace_seconds
    housekeeping.sweep()
    assert store.find(identity(1)) is None
    assert store.find(identity(2)) is not None
    assert len(names(store)) == 3
    assert housekeeping.usage.nbytes == sum(blob.size for blob in store.blobs.list() if "/contents/" in blob.name)


def test_replaced_data_goes_too(store: DocumentStore, housekeeping: Housekeeping, clock: Clock) -> None:
    write(store, identity(), small_document(scores=False))
    manifest = write(store, identity(), small_document(scores=True))
    store.keep(record("a"))
    housekeeping.sweep()
    clock.now += housekeeping.grace_seconds
    housekeeping.sweep()
    [data] = names(store, lambda name: name.endswith(".safetensors"))
    assert data.endswith(manifest.data)


def test_what_a_killed_process_left_goes_after_an_hour(
    store: DocumentStore, housekeeping: Housekeeping, clock: Clock
) -> None:
    store.blobs.write(f"{'0' * 32}/contents/{'1' * 64}.json{UNFINISHED}", b"half")
    housekeeping.sweep()
    clock.now += UNFINISHED_SECONDS - 1
    housekeeping.sweep()
    assert len(names(store)) == 1
    clock.now += 1
    housekeeping.sweep()
    assert names(store) == []


def test_what_is_somebody_elses_stays(store: DocumentStore, housekeeping: Housekeeping, clock: Clock) -> None:
    """A store can be put into a folder that others use, too, and one store into another's folder."""
    theirs = ["contents/thesis.json", "a/contents/b.safetensors", f"download{UNFINISHED}", "x/ids/y.json"]
    theirs.append(f"inner/{'0' * 32}/contents/{'1' * 64}.json")
    for name in theirs:
        store.blobs.write(name, b"theirs")
    for _ in range(3):
        housekeeping.sweep()
        clock.now += 2 * UNFINISHED_SECONDS
    assert sorted(names(store)) == sorted(theirs)
    assert housekeeping.usage.nbytes == 0


def test_no_more_is_promised_than_the_quota_holds(store: DocumentStore, housekeeping: Housekeeping) -> None:
    housekeeping.promise("a", 600_000)
    with pytest.raises(StoreFullError) as caught:
        housekeeping.promise("b", 500_000)
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (500_000, 400_000)
    assert caught.value.retry_seconds == 1
    store.keep(record("a", expire_time=1520.0))
    housekeeping.sweep()
    with pytest.raises(StoreFullError) as caught:
        housekeeping.promise("b", 500_000)
    assert caught.value.retry_seconds == 20
    store.forget("one", "a")
    housekeeping.settle("a", written_bytes=0)
    housekeeping.promise("b", 500_000)
    housekeeping.settle("b", written_bytes=500_000)
    with pytest.raises(StoreFullError):
        housekeeping.promise("c", 500_001)
    housekeeping.sweep()  # nothing is really there
    housekeeping.promise("c", 1_000_000)


def test_a_full_disk_is_a_full_store(store: DocumentStore) -> None:
    free_bytes = store.blobs.free_bytes
    housekeeping = Housekeeping(store, None)
    if free_bytes is None:
        housekeeping.promise("a", 2**60, free_bytes)
        return
    with pytest.raises(StoreFullError):
        housekeeping.promise("a", 2**60, free_bytes)


def test_what_changes_during_a_sweep_is_looked_at_again(
    store: DocumentStore, housekeeping: Housekeeping, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that is made again just when its lease ends, and one for a content that was about to go, stay."""
    write(store, identity(1), small_document())
    write(store, identity(2), small_document())
    store.keep(record("ends", identity(1), expire_time=1560.0))
    housekeeping.sweep()
    clock.now += housekeeping.grace_seconds
    listing, slow = store.listing, True

    def slowly() -> list[Blob]:
        nonlocal slow
        blobs = listing()
        if slow:
            slow = False
            store.keep(record("ends", identity(1), expire_time=9000.0))
            store.keep(record("new", identity(2), expire_time=9000.0))
        return blobs

    monkeypatch.setattr(store, "listing", slowly)
    housekeeping.sweep()
    assert not slow
    for document_id, content in (("ends", 1), ("new", 2)):
        assert store.record("one", document_id) is not None
        assert store.find(identity(content)) is not None
    assert {found.document_id for found in housekeeping.usage.records} == {"ends", "new"}
