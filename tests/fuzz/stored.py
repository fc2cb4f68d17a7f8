"""What is in the document store, damaged or made up: a document comes back as it was, or is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from hypothesis import strategies as st

from reformer_server.errors import StoredDocumentDamagedError
from reformer_server.store.document_store import DocumentStore
from reformer_server.store.manifest import _canonical, _digest
from tests.fuzz.checkpoints import VALUES
from tests.fuzz.mutations import mutated
from tests.fuzz.target import Judge, Target

Kind = Literal["manifest", "id", "data"]
Case = tuple[Kind, bytes]


class Files:
    """A store with one document under one id, whose files can be replaced."""

    def __init__(self) -> None:
        from tests.server.store.stored import (
            identity,
            record,
            small_document,
            write,
        )  # it takes seconds, in every process

        self.store = DocumentStore("memory://fuzz")
        self.document = small_document()
        self.manifest = write(self.store, identity(), self.document)
        self.record = record()
        self.store.keep(self.record)
        blobs = {blob.name: self.store.blobs.read(blob.name, blob.size) for blob in self.store.blobs.list()}
        self.whole = blobs
        self.names: dict[Kind, str] = {}
        for name in blobs:
            self.names["data" if name.endswith(".safetensors") else "id" if "/ids/" in name else "manifest"] = name

    def replace(self, kind: Kind, content: bytes) -> None:
        """All files as they were, but one."""
        for name, whole in self.whole.items():
            self.store.blobs.write(name, content if name == self.names[kind] else whole)

    def close(self) -> None:
        for name in self.whole:
            self.store.blobs.delete(name)


def _cases() -> st.SearchStrategy[Case]:
    files = Files()
    seeds = {kind: files.whole[name] for kind, name in files.names.items()}
    manifests = {"manifest": files.manifest, "id": files.record}
    files.close()
    edited: list[st.SearchStrategy[Any]] = [st.tuples(st.just(kind), mutated([seed])) for kind, seed in seeds.items()]
    forged = [st.tuples(st.just(kind), _forged(manifest)) for kind, manifest in manifests.items()]
    return st.one_of(edited + forged)


@st.composite
def _forged(draw: st.DrawFn, manifest: Any) -> bytes:
    """Other values under a right digest, as somebody could write them who can write to the store."""
    values = manifest.model_dump(mode="json")
    inside = draw(st.sampled_from([values, values["identity"], values["identity"]["model"]]))
    for key in draw(st.lists(st.sampled_from(sorted(inside)), min_size=1, max_size=3)):
        inside[key] = draw(st.sampled_from(VALUES) | st.integers(0, 1000))
    return _canonical({"sha256": _digest(values), "manifest": values})


@contextmanager
def _restoring() -> Iterator[Judge[Case]]:
    from tests.server.store.stored import identity, pages_of

    files = Files()
    store = files.store

    def restore() -> None:
        manifest = store.find(identity())
        if manifest is None:
            return
        pages = pages_of(store, manifest)
        if manifest == files.manifest:
            assert torch.equal(pages, files.document.read_pages(0, files.document.page_count))

    def look_up() -> None:
        there = store.record(files.record.identity.tenant, files.record.document_id)
        assert there is None or there.document_id == files.record.document_id

    def judge(case: Case) -> None:
        files.replace(*case)
        for use in (restore, look_up, lambda: store.records(files.record.identity.tenant)):
            refused_or_done(use)

    yield judge
    files.close()


def refused_or_done(use: Callable[[], object]) -> None:
    """Whatever is in the files, the error is the one that says so."""
    try:
        use()
    except StoredDocumentDamagedError as error:
        assert str(error), "the error says nothing"  # noqa: PT017 -- either is right


STORED = Target(
    "stored", "manifests, ids and data in the document store, changed or made up", 2_000, _cases, _restoring
)
