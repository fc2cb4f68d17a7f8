"""A store in a folder, and one that fsspec keeps in memory, as it would any other."""

import uuid
from pathlib import Path

import pytest

from reformer_server.store.document_store import DocumentStore


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str) -> DocumentStore:
    return DocumentStore(url)
