"""Ids that look like paths are ids like any other, or refused; none of them reaches a file system."""

import asyncio
import re
from pathlib import Path

import grpc
import pytest

from reformer.v1 import document_pb2 as pb
from reformer_server import ServedModel
from tests.server.conftest import Running, running_server
from tests.server.statuses import refused
from tests.server.test_real_engine import make_engine
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


async def test_the_store_names_its_files_by_digests(served_model: ServedModel, elsewhere: Path) -> None:
    store = elsewhere / "store"
    async with running_server(served_model, make_engine(served_model), store=str(store)) as running:
        for number, document_id in enumerate(STAY_IDS):
            await create_document(running, b"text %d" % number, document_id=document_id)
            request = pb.GetDocumentRequest(document_id=document_id)
            async with asyncio.timeout(10):
                while not (await running.documents.GetDocument(request)).document.stored:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    files = [path for path in elsewhere.parents[1].rglob("*") if path.is_file()]
    assert len(files) >= 3 * len(STAY_IDS)
    digests = re.compile(
        r"[0-9a-f]{32}/(contents/[0-9a-f]{64}(\.json|\.[0-9a-f]{32}\.safetensors)|ids/[0-9a-f]{64}\.json)"
    )
    assert [file for file in files if not digests.fullmatch(file.relative_to(store).as_posix())] == []


@pytest.mark.parametrize("document_id", REFUSED)
async def test_is_refused(running: Running, document_id: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await create_document(running, b"text", document_id=document_id)
    assert refusal.field == "header.document_id"
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id=document_id))
