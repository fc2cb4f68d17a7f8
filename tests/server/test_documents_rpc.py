"""DocumentService over the wire: uploads, resuming, sharing, leases, scores."""

import asyncio
import hashlib

import grpc
import numpy as np
import pytest

from reformer.v1 import document_pb2 as pb
from reformer_server import calls, tenants
from reformer_server.calls import Context
from reformer_server.content import DocumentName
from tests.server.conftest import Running
from tests.server.statuses import refused
from tests.server.uploading import TOKEN_IDS, chunk, create, create_document, header, rest, seconds

TEXT = b"All happy families are alike."


async def test_upload_streams_accepted_progress_document(running: Running) -> None:
    running.engine.step_seconds = 0.005
    responses = await create(running, [header(TEXT, document_id="anna"), chunk(TEXT[:10]), chunk(TEXT[10:], 10)])
    events = [response.WhichOneof("event") for response in responses]
    assert events[0] == "accepted"
    assert events[-1] == "document"
    assert set(events[1:-1]) == {"progress"}
    assert responses[0].accepted == pb.UploadAccepted(document_id="anna", resume_offset=0)
    document = responses[-1].document
    assert (document.document_id, document.tokens, document.content_bytes) == ("anna", len(TEXT), len(TEXT))
    assert document.sha256 == hashlib.sha256(TEXT).digest()
    assert document.memory_bytes > 0
    assert not document.cached
    assert not document.has_scores
    assert document.expire_time.seconds - document.create_time.seconds == 3600


async def test_server_chooses_an_id(running: Running) -> None:
    document = await create_document(running, TEXT)
    got = await running.documents.GetDocument(pb.GetDocumentRequest(document_id=document.document_id))
    assert got.document == document


async def test_token_ids(running: Running) -> None:
    content = np.array([5, 257, 0], "<u4").tobytes()
    document = await create_document(running, content, content_type=TOKEN_IDS)
    assert document.tokens == 3


async def test_same_upload_again_is_free(running: Running) -> None:
    first = await create_document(running, TEXT, document_id="a")
    steps = running.engine.steps
    responses = await create(running, [header(TEXT, document_id="a")])
    assert responses[0].accepted.resume_offset == len(TEXT)
    again = responses[-1].document
    assert again.cached
    assert again.create_time == first.create_time
    assert again.expire_time.ToNanoseconds() >= first.expire_time.ToNanoseconds()
    assert running.engine.steps <= steps + 1


async def test_same_upload_without_digest_is_compared(running: Running) -> None:
    await create_document(running, TEXT, document_id="a")
    responses = await create(running, [header(document_id="a"), chunk(TEXT)])
    assert responses[-1].document.cached
    with refused(grpc.StatusCode.ALREADY_EXISTS) as refusal:
        await create(running, [header(document_id="a"), chunk(TEXT[::-1])])
    assert refusal.metadata == {"document_id": "a"}


@pytest.mark.parametrize("fields", [{"sha256": bytes(32)}, {"total_bytes": 3}, {"content_type": TOKEN_IDS}])
async def test_other_content_under_the_same_id(running: Running, fields: dict[str, object]) -> None:
    await create_document(running, TEXT, document_id="a")
    with refused(grpc.StatusCode.ALREADY_EXISTS) as refusal:
        await create(running, [header(TEXT, document_id="a", **fields)])
    assert refusal.reason == "DOCUMENT_EXISTS"


async def test_equal_content_shares_memory_and_outlives_the_first_id(running: Running) -> None:
    await create_document(running, TEXT, document_id="a")
    used = running.engine.load().used_page_bytes
    second = await create_document(running, TEXT, document_id="b")
    assert second.cached
    assert running.engine.load().used_page_bytes == used
    assert running.metric("document_cache_bytes", tier="memory") == used
    await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id="a"))
    assert (await running.documents.GetDocument(pb.GetDocumentRequest(document_id="b"))).document.tokens == len(TEXT)
    await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id="b"))
    await running.until_idle()


async def test_scores_are_computed_when_they_are_asked_for_later(running: Running) -> None:
    await create_document(running, TEXT, document_id="a")
    document = await create_document(running, TEXT, document_id="a", keep_scores=True)
    assert document.has_scores
    assert not document.cached
    await running.until(lambda: len(running.engine.documents) == 1)  # the one without scores is freed


async def test_simultaneous_equal_uploads_are_read_once(running: Running) -> None:
    content = TEXT * 20
    running.engine.step_seconds = 0.001
    documents = await asyncio.gather(*(create_document(running, content, document_id=f"d{i}") for i in range(5)))
    assert {document.document_id for document in documents} == {f"d{i}" for i in range(5)}
    assert len(running.engine.documents) == 1
    assert running.metric("prefill_tokens_total", source="computed") == len(content)


async def test_broken_off_upload_is_resumed(running: Running) -> None:
    call = running.documents.CreateDocument(timeout=10)
    await call.write(header(TEXT, document_id="a"))
    await call.write(chunk(TEXT[:10]))
    assert (await call.read()).accepted.resume_offset == 0
    await running.until(lambda: running.server.uploads.nbytes == 10)
    call.cancel()
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        await running.documents.GetDocument(pb.GetDocumentRequest(document_id="a"))
    assert refusal.metadata["state"] == "uploading"

    call = running.documents.CreateDocument(timeout=10)
    await call.write(header(TEXT, document_id="a"))
    accepted = (await call.read()).accepted
    assert accepted.resume_offset == 10
    await call.write(chunk(TEXT[10:], 10))
    await call.done_writing()
    assert (await rest(call))[-1].document.tokens == len(TEXT)


async def test_second_call_takes_an_upload_over(running: Running) -> None:
    first = running.documents.CreateDocument(timeout=10)
    await first.write(header(TEXT, document_id="a"))
    await first.write(chunk(TEXT[:10]))
    await running.until(lambda: running.server.uploads.nbytes == 10)
    await first.read()
    second = running.documents.CreateDocument(timeout=10)
    await second.write(header(TEXT, document_id="a"))
    offset = (await second.read()).accepted.resume_offset
    with refused(grpc.StatusCode.ABORTED) as refusal:
        await first.read()
    assert refusal.reason == "UPLOAD_ABORTED"
    await second.write(chunk(TEXT[offset:], offset))
    await second.done_writing()
    assert (await rest(second))[-1].document.tokens == len(TEXT)


async def test_other_content_during_an_upload_is_refused(running: Running) -> None:
    first = running.documents.CreateDocument(timeout=10)
    await first.write(header(TEXT, document_id="a"))
    await first.read()
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        await create_document(running, TEXT[::-1], document_id="a")
    await first.write(chunk(TEXT))
    await first.done_writing()
    assert (await rest(first))[-1].document.tokens == len(TEXT)


async def test_delete_ends_an_upload(running: Running) -> None:
    call = running.documents.CreateDocument(timeout=10)
    await call.write(header(TEXT, document_id="a"))
    await call.read()
    await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id="a"))
    with refused(grpc.StatusCode.ABORTED):
        await call.read()
    with refused(grpc.StatusCode.NOT_FOUND):
        await running.documents.GetDocument(pb.GetDocumentRequest(document_id="a"))


@pytest.mark.parametrize("event", ["accepted", "progress"])
async def test_delete_while_a_response_is_being_sent_ends_the_upload(
    running: Running, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    running.engine.step_seconds = 0.005
    write = calls._write
    deleted = False

    async def delete_amid(context: Context, response: pb.CreateDocumentResponse) -> None:
        nonlocal deleted
        if response.WhichOneof("event") == event and not deleted:
            deleted = True
            name = DocumentName(tenants.current().name, "a")
            asyncio.get_running_loop().call_soon(running.server.uploads.drop, name)
        await write(context, response)

    monkeypatch.setattr(calls, "_write", delete_amid)
    with refused(grpc.StatusCode.ABORTED) as refusal:
        await create(running, [header(TEXT * 20, document_id="a"), chunk(TEXT * 20)], timeout=3)
    assert refusal.reason == "UPLOAD_ABORTED"
    assert deleted
    await running.until_idle()


async def test_delete_during_prefill_stops_it(running: Running) -> None:
    running.engine.step_seconds = 0.002
    call = running.documents.CreateDocument(timeout=10)
    await call.write(header(TEXT * 100, document_id="a"))
    await call.write(chunk(TEXT * 100))
    await call.done_writing()
    await running.until(lambda: bool(running.engine.requests))
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        await running.documents.GetDocument(pb.GetDocumentRequest(document_id="a"))
    assert refusal.metadata["state"] == "prefilling"
    await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id="a"))
    with refused(grpc.StatusCode.ABORTED):
        await rest(call)
    await running.until_idle()


async def test_lease_ends(running: Running) -> None:
    await create_document(running, TEXT, document_id="a", lease=seconds(0.2))
    await running.documents.GetDocument(pb.GetDocumentRequest(document_id="a"))
    await asyncio.sleep(0.25)
    with refused(grpc.StatusCode.NOT_FOUND) as refusal:
        await running.documents.GetDocument(pb.GetDocumentRequest(document_id="a"))
    assert refusal.reason == "DOCUMENT_EXPIRED"
    await running.until_idle()
    assert running.metric("document_cache_evictions_total", reason="expired") == 1
    assert (await create_document(running, TEXT, document_id="a")).document_id == "a"


async def test_expired_documents_make_room(running: Running) -> None:
    running.engine.memory_bytes = 150
    await create_document(running, b"a" * 100, lease=seconds(0.1))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await create_document(running, b"b" * 100)
    await asyncio.sleep(0.1)
    assert (await create_document(running, b"b" * 100)).tokens == 100


async def test_renew(running: Running) -> None:
    before = await create_document(running, TEXT, document_id="a", lease=seconds(10))
    request = pb.RenewDocumentRequest(document_id="a", lease=seconds(100))
    renewed = (await running.documents.RenewDocument(request)).document
    assert 89 <= renewed.expire_time.seconds - before.expire_time.seconds <= 91
    default = (await running.documents.RenewDocument(pb.RenewDocumentRequest(document_id="a"))).document
    assert default.expire_time.seconds - renewed.expire_time.seconds > 3000


async def test_delete_is_idempotent(running: Running) -> None:
    await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id="never"))
    await create_document(running, TEXT, document_id="a")
    for _ in range(2):
        await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id="a"))
    with refused(grpc.StatusCode.NOT_FOUND) as refusal:
        await running.documents.GetDocument(pb.GetDocumentRequest(document_id="a"))
    assert refusal.reason == "DOCUMENT_NOT_FOUND"


async def test_list_in_pages(running: Running) -> None:
    ids = [f"doc{i}" for i in range(7)]
    for id in ids:
        await create_document(running, id.encode(), document_id=id)
    listed: list[str] = []
    token = ""
    sizes = []
    while True:
        request = pb.ListDocumentsRequest(page_size=3, page_token=token)
        page = await running.documents.ListDocuments(request)
        listed += [document.document_id for document in page.documents]
        sizes.append(len(page.documents))
        token = page.next_page_token
        if not token:
            break
        # Deleting what was listed doesn't shift the pages.
        await running.documents.DeleteDocument(pb.DeleteDocumentRequest(document_id=listed[-1]))
    assert listed == ids
    assert sizes == [3, 3, 1]


async def test_read_scores(running: Running) -> None:
    content = b"x" * 3000
    await create_document(running, content, document_id="a", keep_scores=True)

    async def read(**bounds: int) -> tuple[int, np.ndarray, np.ndarray]:
        call = running.documents.ReadDocumentScores(pb.ReadDocumentScoresRequest(document_id="a", **bounds))
        blocks = [response.scores async for response in call]
        logprobs = np.concatenate([np.frombuffer(block.logprobs, "<f4") for block in blocks] or [np.empty(0)])
        ids = np.concatenate([np.frombuffer(block.token_ids, "<u4") for block in blocks] or [np.empty(0)])
        return blocks[0].start_token if blocks else -1, logprobs, ids

    start, logprobs, ids = await read()
    assert start == 0
    assert np.isnan(logprobs[0])
    assert not np.isnan(logprobs[1:]).any()
    assert (ids == ord("x") + 2).all()
    assert len(ids) == len(logprobs) == 3000
    start, part, _ = await read(start_token=100, end_token=103)
    assert start == 100
    assert (part == logprobs[100:103]).all()
    assert (await read(start_token=3000))[0] == -1


async def test_document_without_scores(running: Running) -> None:
    await create_document(running, TEXT, document_id="a")
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
        async for _ in running.documents.ReadDocumentScores(pb.ReadDocumentScoresRequest(document_id="a")):
            pass
    assert refusal.reason == "NO_SCORES"


async def test_cancelled_prefill_frees_its_pages_and_can_be_resumed(running: Running) -> None:
    content = TEXT * 50
    running.engine.step_seconds = 0.002
    call = running.documents.CreateDocument(timeout=10)
    await call.write(header(content, document_id="a"))
    await call.write(chunk(content))
    await call.done_writing()
    await running.until(lambda: running.server.engine.load.running == 1)  # submitted, and begun
    call.cancel()
    await running.until(lambda: running.metric("cancelled_total", phase="prefill") == 1)
    await running.until_idle()
    assert running.metric("cancelled_total", phase="prefill") == 1
    assert running.metric("cancel_latency_seconds_count") == 1
    running.engine.step_seconds = 0
    responses = await create(running, [header(content, document_id="a")])
    assert responses[0].accepted.resume_offset == len(content)
    assert responses[-1].document.tokens == len(content)
