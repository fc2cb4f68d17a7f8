"""Uploads as sequences: chunks cut, repeated, misplaced, calls broken off, resumed, taken over, deleted.

Whatever was done, an upload of the right content comes through in the end, from where the server says that it goes on.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import grpc
from hypothesis import strategies as st

from reformer.v1 import document_pb2 as pb
from reformer_client.exchange import exchange
from reformer_core.tokenizers import ByteTokenizer
from tests.fuzz.serving import Served, check_status, served
from tests.fuzz.target import CASE_SECONDS, Judge, Target
from tests.server.conftest import tiny_served_model
from tests.server.fake_engine import FakeEngine
from tests.server.uploading import chunk, header

CONTENT = bytes(range(32, 127)) * 3
ID = "sequence"


@dataclass(frozen=True)
class Attempt:
    """One call: it goes on from where the server says, and then does something wrong, or not."""

    pieces: tuple[int, ...]
    """Sizes of the chunks."""
    fault: str
    """What comes after them: "" nothing, the rest isn't sent; or one of FAULTS."""
    deleted: bool
    """Whether the document is deleted after the call."""


FAULTS = ("", "gap", "overlap", "again", "empty", "header", "nothing", "too much", "cancel", "other id", "wrong bytes")

Case = list[Attempt]


def _cases() -> st.SearchStrategy[Case]:
    pieces = st.lists(st.sampled_from([1, 7, 50, 94, 285]), max_size=4).map(tuple)
    attempts = st.builds(Attempt, pieces, st.sampled_from(FAULTS), st.integers(0, 9).map(lambda n: n == 9))
    return st.lists(attempts, min_size=1, max_size=4)


@contextmanager
def _uploading() -> Iterator[Judge[Case]]:
    model = tiny_served_model(ByteTokenizer())
    with served(model, FakeEngine, upload_retention_seconds=60.0) as (server, runner):
        yield lambda case: runner.run(_judge(server, case))


async def _judge(server: Served, case: Case) -> None:
    async with asyncio.timeout(CASE_SECONDS):
        for attempt in case:
            await _upload(server, attempt)
            if attempt.deleted:
                await server.succeed(pb.DeleteDocumentRequest(document_id=ID))
        last = await _upload(server, Attempt((), "rest", deleted=False))
        if last is None:  # the last attempt's bytes were wrong, and the server has found out just now
            last = await _upload(server, Attempt((), "rest", deleted=False))
        assert last is not None, "the content doesn't come through"
        assert (last.tokens, last.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).digest())
        await server.clear()
        await server.fill()


async def _upload(server: Served, attempt: Attempt) -> pb.Document | None:
    """The document, if the call ends with it."""
    resume: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    call = server.running.documents.CreateDocument()

    async def send() -> AsyncGenerator[pb.CreateDocumentRequest]:
        yield header(CONTENT, document_id=ID)
        at = await resume
        for size in attempt.pieces:
            piece = CONTENT[at : at + size]
            if piece:
                yield chunk(piece, at)
                at += len(piece)
        for request in _faulty(attempt.fault, at):
            yield request
        if attempt.fault == "cancel":
            call.cancel()

    document = None
    try:
        async with aclosing(exchange(call, send())) as responses:
            async for response in responses:
                if response.HasField("accepted"):
                    assert 0 <= response.accepted.resume_offset <= len(CONTENT)
                    resume.set_result(response.accepted.resume_offset)
                document = response.document if response.HasField("document") else None
    except grpc.aio.AioRpcError as error:
        check_status(error)
    except asyncio.CancelledError:
        if attempt.fault != "cancel":
            raise
    return document


def _faulty(fault: str, at: int) -> list[pb.CreateDocumentRequest]:
    rest = CONTENT[at:]
    return {
        "gap": [chunk(b"x", at + 1)],
        "overlap": [chunk(b"x", max(at - 1, 0))],
        "again": [chunk(CONTENT[:5], 0)],
        "empty": [chunk(b"", at)],
        "header": [header(CONTENT, document_id=ID)],
        "nothing": [pb.CreateDocumentRequest()],
        "too much": [chunk(rest + b"x", at)],
        "other id": [header(CONTENT, document_id="other")],
        "wrong bytes": [chunk(bytes(len(rest)), at)] if rest else [],
        "rest": [chunk(rest, at)] if rest else [],
    }.get(fault, [])


SEQUENCES = Target("upload-sequences", "uploads with faults, resumed until they are through", 1_500, _cases, _uploading)
