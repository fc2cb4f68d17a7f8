"""Contents and ids in the store: bit for bit what was written, or refused."""

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_safetensors

from reformer_server.errors import StoredDocumentDamagedError
from reformer_server.store.document_store import DocumentStore, tenant_folder
from reformer_server.store.manifest import ModelIdentity
from tests.server.store.stored import MODEL, identity, pages_of, record, small_document, write


@pytest.mark.parametrize("scores", [False, True])
def test_comes_back_bit_for_bit(store: DocumentStore, scores: bool) -> None:
    document = small_document(scores=scores)
    manifest = write(store, identity(), document)
    reader = store.reader(manifest)
    assert torch.equal(reader.token_ids, document.token_ids)
    if document.scores is None:
        assert reader.scores is None
    else:
        assert reader.scores is not None
        assert torch.equal(reader.scores.nan_to_num(9), document.scores.nan_to_num(9))
    assert torch.equal(torch.cat(list(reader.slices())), document.read_pages(0, document.page_count))
    reader.close()
    assert manifest.notes == ("a note",)


def test_its_data_is_a_safetensors_file(store: DocumentStore) -> None:
    document = small_document()
    write(store, identity(), document)
    [blob] = [blob for blob in store.blobs.list() if blob.name.endswith(".safetensors")]
    tensors = load_safetensors(store.blobs.read(blob.name, blob.size))
    assert set(tensors) == {"token_ids", "scores", "pages"}
    assert torch.equal(tensors["pages"], document.read_pages(0, document.page_count))
    assert torch.equal(tensors["token_ids"], document.token_ids)


@pytest.mark.parametrize("field", ["weights", "tokenizer", "hashing", "pages"])
def test_another_models_isnt_found(store: DocumentStore, field: str) -> None:
    write(store, identity(), small_document())
    other = ModelIdentity(**MODEL.model_dump() | {field: "0" * 64})
    assert store.find(identity(model=other)) is None
    assert store.find(identity(tenant="two")) is None
    assert store.find(identity(2)) is None
    assert store.find(identity()) is not None


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "gone"])
def test_damaged_data_is_never_given_out_whole(store: DocumentStore, damage: str) -> None:
    """The last pages aren't, so that no document can come of it."""
    document = small_document()
    manifest = write(store, identity(), document)
    [blob] = [blob for blob in store.blobs.list() if blob.name.endswith(".safetensors")]
    content = bytearray(store.blobs.read(blob.name, blob.size))
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[-1]
    elif damage == "longer":
        content[20:20] = b" "
    store.blobs.delete(blob.name)
    if damage != "gone":
        store.blobs.write(blob.name, bytes(content))
    with pytest.raises(StoredDocumentDamagedError):
        pages_of(store, manifest)


def test_a_manifest_that_cant_be_read_is_dropped(store: DocumentStore) -> None:
    write(store, identity(), small_document())
    [blob] = [blob for blob in store.blobs.list() if blob.name.endswith(".json")]
    store.blobs.write(blob.name, b"{}")
    with pytest.raises(StoredDocumentDamagedError, match="manifest"):
        store.find(identity())
    assert store.find(identity()) is None


def test_a_manifest_in_anothers_place_is_refused(store: DocumentStore) -> None:
    """Copied by hand from one tenant to another, or from one model to another."""
    document = small_document()
    write(store, identity(), document)
    write(store, identity(tenant="two"), document)
    mine, its = [blob for blob in store.blobs.list() if blob.name.endswith(".json")]
    store.blobs.write(mine.name, store.blobs.read(its.name, its.size))
    [wrong] = [tenant for tenant in ("one", "two") if mine.name.startswith(tenant_folder(tenant))]
    with pytest.raises(StoredDocumentDamagedError, match="another"):
        store.find(identity(tenant=wrong))
    assert store.find(identity(tenant=wrong)) is None


def test_a_content_is_replaced_as_a_whole(store: DocumentStore) -> None:
    """By a reading with scores, while somebody reads the one without."""
    without = write(store, identity(), small_document(scores=False))
    reader = store.reader(without)
    with_scores = write(store, identity(), small_document(scores=True))
    assert with_scores.has_scores
    assert torch.equal(torch.cat(list(reader.slices())), pages_of(store, with_scores))
    reader.close()


def test_a_damaged_content_that_was_mended_meanwhile_isnt_dropped(store: DocumentStore) -> None:
    """Finding the damage takes as long as reading all of it."""
    damaged = write(store, identity(), small_document())
    mended = write(store, identity(), small_document())
    store.drop(damaged)
    assert store.find(identity()) == mended
    store.drop(mended)
    store.drop(mended)
    assert store.find(identity()) is None


def test_ids_are_names_not_paths(store: DocumentStore, tmp_path: Path) -> None:
    ids = ["..", ".", "a", "A", "~", "x" * 128, "...json", "-"]
    for id in ids:
        store.keep(record(id))
    assert sorted(found.document_id for found in store.records("one")) == sorted(ids)
    for id in ids:
        found = store.record("one", id)
        assert found is not None
        assert found.document_id == id
        assert store.record("two", id) is None
    store.forget("one", "..")
    assert store.record("one", "..") is None
    assert len(store.records("one")) == len(ids) - 1
    assert {path.name for path in tmp_path.iterdir()} <= {"store"}


def test_records_are_read_once_a_version(store: DocumentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.keep(record("a"))
    store.keep(record("b"))
    assert len(store.records("one")) == 2
    reads: list[str] = []
    read = store.blobs.read
    monkeypatch.setattr(store.blobs, "read", lambda name, size: reads.append(name) or read(name, size))
    assert len(store.records("one")) == 2
    assert reads == []
    store.keep(record("b", expire_time=3000.0))
    assert {found.expire_time for found in store.records("one")} == {2000.0, 3000.0}
    assert len(reads) == 1


def test_a_pickle_in_the_datas_place_is_only_bytes(store: DocumentStore) -> None:
    document = small_document()
    manifest = write(store, identity(), document)
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(5)}, buffer)
    [blob] = [blob for blob in store.blobs.list() if blob.name.endswith(".safetensors")]
    store.blobs.write(blob.name, buffer.getvalue())
    with pytest.raises(StoredDocumentDamagedError):
        pages_of(store, manifest)
