"""Manifests: what was sealed comes back, and nothing else does."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_server.errors import StoredDocumentDamagedError
from reformer_server.store.manifest import ContentManifest, DocumentRecord, ModelIdentity, seal, unseal
from tests.server.store.stored import MODEL, identity, record

CONTENT = ContentManifest(
    identity=identity(),
    tokens=5,
    has_scores=True,
    notes=("x",),
    pages=3,
    page_bytes=4096,
    data="00.11.safetensors",
    data_bytes=9,
    data_sha256="d" * 64,
)


@pytest.mark.parametrize("manifest", [CONTENT, record(notes=("ein", "Wörtchen"))])
def test_comes_back(manifest: Any) -> None:
    assert unseal(seal(manifest), type(manifest)) == manifest


@given(st.data())
def test_any_change_is_noticed(data: st.DataObject) -> None:
    sealed = bytearray(seal(record()))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StoredDocumentDamagedError):
        unseal(bytes(sealed), DocumentRecord)


@given(st.binary(max_size=100) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_anything_else_is_refused(content: Any) -> None:
    with pytest.raises(StoredDocumentDamagedError):
        unseal(content if isinstance(content, bytes) else content.encode(), ContentManifest)


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokens", 0), ("data", "../x.safetensors"), ("data_sha256", "D" * 64), ("format", 2)],
)
def test_a_sealed_manifest_with_a_wrong_value_is_refused(field: str, value: object) -> None:
    """By somebody who can compute digests."""
    forged = CONTENT.model_copy(update={field: value})
    with pytest.raises(StoredDocumentDamagedError, match=field):
        unseal(seal(forged), ContentManifest)


def test_each_part_of_the_identity_counts() -> None:
    values = MODEL.model_dump()
    models = [ModelIdentity(**values | {name: "0" * 64}) for name in values]
    digests = {identity().digest, identity(2).digest, identity(tenant="two").digest}
    digests |= {identity(model=model).digest for model in models}
    assert len(digests) == 3 + len(values)
