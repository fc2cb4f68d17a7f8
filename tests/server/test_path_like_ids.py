"""Ids that look like paths are ids like any other, or refused; none of them reaches a file system."""

from pathlib import Path

import grpc
import pytest

from reformer.v1 import document_pb2 as pb
from tests.server.conftest import Running
from tests.server.statuses import refused
from tests.server.uploading import create_document

STAY_IDS = [".", "..", "...", "~", "~root", "-rf", ".git", "CON", "a.", "..a", "a" * 128]
REFUSED = [
    "",
    "/",
    "../..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:\\x",
    "file:///etc",
    "%2e%2e",
    "a\0",
    "é",
    "a b",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, which is empty at the end, too."""
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("document_id", STAY_IDS)
async def test_stays_an_id(running: Running, elsewhere: Path, document_id: str) -> None:
    before = sorted(elsewhere.parents[1].rglob("*"))
    assert (await create_document(running, b"text", document_id=document_id)).document_id == document_id
    got = await running.documents.GetDocument(pb.GetDocumentRequest(document_id=document_id))
    assert got.document.document_id == document_id
    listed = await running.documents.ListDocuments(pb.ListDocumentsRequest())
    assert [document.document_id for document in listed.documents] == [document_id]
    for other in STAY_IDS:
        if other != document_id:
            with refused(grpc.StatusCode.NOT_FOUND):
                await running.documents.GetDocument(pb.GetDocumentRequest(document_id=other))
    await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id=document_id))
    await running.until_idle()
    assert sorted(elsewhere.parents[1].rglob("*")) == before


@pytest.mark.parametrize("document_id", REFUSED)
async def test_is_refused(running: Running, document_id: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await create_document(running, b"text", document_id=document_id)
    assert refusal.field == "header.document_id"
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id=document_id))
