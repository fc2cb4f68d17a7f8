"""Whatever can be wrong with an upload gets the table's error, and changes nothing."""

import grpc
import pytest

from reformer.v1 import document_pb2 as pb
from tests.server.conftest import Running
from tests.server.statuses import refused
from tests.server.uploading import TEXT, TOKEN_IDS, chunk, create, create_document, header, seconds

CONTENT = b"All happy families are alike."

BAD = {
    "nothing at all": ([], "header"),
    "chunk before header": ([chunk(CONTENT)], "header"),
    "empty request": ([pb.CreateDocumentRequest()], "header"),
    "header twice": ([header(CONTENT), header(CONTENT)], "chunk"),
    "no content type": ([header(CONTENT, content_type=0)], "header.content_type"),
    "unknown content type": ([header(CONTENT, content_type=99)], "header.content_type"),
    "empty id": ([header(CONTENT, document_id="")], "header.document_id"),
    "id with a slash": ([header(CONTENT, document_id="a/b")], "header.document_id"),
    "id with a newline": ([header(CONTENT, document_id="a\n")], "header.document_id"),
    "long id": ([header(CONTENT, document_id="a" * 129)], "header.document_id"),
    "short digest": ([header(CONTENT, sha256=b"1")], "header.sha256"),
    "zero size": ([header(CONTENT, total_bytes=0)], "header.total_bytes"),
    "enormous size": ([header(CONTENT, total_bytes=1 << 40)], "header.total_bytes"),
    "zero lease": ([header(CONTENT, lease=seconds(0))], "header.lease"),
    "negative lease": ([header(CONTENT, lease=seconds(-5))], "header.lease"),
    "endless lease": ([header(CONTENT, lease=seconds(1e9))], "header.lease"),
    "gap": ([header(CONTENT), chunk(CONTENT[:5]), chunk(CONTENT[6:], 6)], "chunk.offset"),
    "overlap": ([header(CONTENT), chunk(CONTENT[:5]), chunk(CONTENT[4:], 4)], "chunk.offset"),
    "empty chunk": ([header(CONTENT), chunk(b"")], "chunk.data"),
    "large chunk": ([header(), chunk(bytes((512 << 10) + 1))], "chunk.data"),
    "too much": ([header(CONTENT), chunk(CONTENT + b"!")], "chunk.data"),
    "too little": ([header(CONTENT), chunk(CONTENT[:5])], "header.total_bytes"),
    "empty": ([header()], "chunk.data"),
    "wrong digest": ([header(CONTENT), chunk(CONTENT[::-1])], "header.sha256"),
    "invalid UTF-8": ([header(), chunk(b"abc\xff")], "chunk.data"),
    "half a character": ([header(), chunk("é".encode()[:1])], "chunk.data"),
    "half an id": ([header(content_type=TOKEN_IDS), chunk(b"123456")], "chunk.data"),
    "id outside the vocabulary": ([header(content_type=TOKEN_IDS), chunk(b"\xff\xff\xff\xff")], "chunk.data"),
}


@pytest.mark.parametrize("case", BAD)
async def test_invalid_argument(running: Running, case: str) -> None:
    requests, field = BAD[case]
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await create(running, requests)
    assert refusal.field == field
    assert refusal.message.startswith(field)
    await running.until_idle()
    assert len(running.server.documents) == 0


@pytest.mark.parametrize(
    "requests",
    [
        [header(b"x" * 4097), chunk(b"x" * 4097)],
        [header(), chunk(b"x" * 4097)],
        [header(total_bytes=4097 * 4, content_type=TOKEN_IDS)],
    ],
)
async def test_longer_than_the_positions(running: Running, requests: list[pb.CreateDocumentRequest]) -> None:
    with refused(grpc.StatusCode.OUT_OF_RANGE) as refusal:
        await create(running, requests)
    assert refusal.metadata == {"tokens": "4097", "max_tokens": "4096"}
    assert running.server.uploads.nbytes == 0


async def test_wrong_content_is_not_resumed(running: Running) -> None:
    wrong, right = b"x" + CONTENT[1:], CONTENT
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await create(running, [header(right, document_id="a"), chunk(wrong)])
    assert running.server.uploads.state("a") is None
    assert (await create_document(running, right, document_id="a")).tokens == len(right)


async def test_gap_can_be_mended(running: Running) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await create(running, [header(CONTENT, document_id="a"), chunk(CONTENT[:5]), chunk(CONTENT[6:], 6)])
    responses = await create(running, [header(CONTENT, document_id="a"), chunk(CONTENT[5:], 5)])
    assert responses[0].accepted.resume_offset == 5
    assert responses[-1].document.tokens == len(CONTENT)


async def test_content_that_never_fits(running: Running) -> None:
    running.engine.memory_bytes = 10
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
        await create_document(running, CONTENT)
    assert refusal.metadata == {"needed_bytes": "29", "free_bytes": "10", "fits_when_idle": "False"}


async def test_routing_metadata_that_contradicts(running: Running) -> None:
    for fields in ({"document_id": "a"}, {}):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
            await create(running, [header(CONTENT, **fields)], metadata=[("x-document-id", "b")])
        assert refusal.field == "header.document_id"
    twice = [("x-document-id", "b"), ("x-document-id", "a")]
    for document_id in ("a", "b"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await create(running, [header(CONTENT, document_id=document_id)], metadata=twice)
    responses = await create(running, [header(document_id="b"), chunk(CONTENT)], metadata=[("x-document-id", "b")])
    assert responses[-1].document.content_type == TEXT


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListDocumentsRequest(page_size=0), "page_size"),
        (pb.ListDocumentsRequest(page_size=1001), "page_size"),
        (pb.ListDocumentsRequest(page_token="nonsense"), "page_token"),
        (pb.ListDocumentsRequest(page_token="bnVsbA=="), "page_token"),
        (pb.ListDocumentsRequest(page_token="W1tb" * 10_000), "page_token"),
        (pb.ListDocumentsRequest(page_token="é"), "page_token"),
        (pb.GetDocumentRequest(), "document_id"),
        (pb.DeleteDocumentRequest(document_id="a b"), "document_id"),
        (pb.RenewDocumentRequest(document_id="a", lease=seconds(0)), "lease"),
        (pb.RenewDocumentRequest(document_id="a", lease=seconds(1e9)), "lease"),
        (pb.ReadDocumentScoresRequest(document_id="a", end_token=30), "end_token"),
        (pb.ReadDocumentScoresRequest(document_id="a", start_token=30), "start_token"),
        (pb.ReadDocumentScoresRequest(document_id="a", start_token=3, end_token=2), "start_token"),
    ],
)
async def test_other_bad_requests(running: Running, request_: object, field: str) -> None:
    await create_document(running, CONTENT, document_id="a", keep_scores=True)
    method = getattr(running.documents, type(request_).__name__.removesuffix("Request"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        if isinstance(request_, pb.ReadDocumentScoresRequest):
            async for _ in method(request_):
                pass
        else:
            await method(request_)
    assert refusal.field == field
