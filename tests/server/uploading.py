"""What tests say to CreateDocument, in few words."""

import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from reformer.v1 import document_pb2 as pb
from reformer_client.exchange import exchange
from tests.server.conftest import Running

TEXT = pb.CONTENT_TYPE_TEXT
TOKEN_IDS = pb.CONTENT_TYPE_TOKEN_IDS


def header(content: bytes | None = None, **fields: Any) -> pb.CreateDocumentRequest:
    """A header; with `content`, one that announces its size and digest."""
    values: dict[str, Any] = {"content_type": TEXT}
    if content is not None:
        values |= {"total_bytes": len(content), "sha256": hashlib.sha256(content).digest()}
    return pb.CreateDocumentRequest(header=pb.DocumentHeader(**values | fields))


def chunk(data: bytes, offset: int = 0) -> pb.CreateDocumentRequest:
    return pb.CreateDocumentRequest(chunk=pb.ContentChunk(offset=offset, data=data))


def seconds(value: float) -> Duration:
    return Duration(seconds=int(value), nanos=int(value % 1 * 1e9))


async def create(
    running: Running,
    requests: Sequence[pb.CreateDocumentRequest],
    *,
    timeout: float | None = 10,
    metadata: Sequence[tuple[str, str]] = (),
) -> list[pb.CreateDocumentResponse]:
    """Sends the requests, half-closes, and returns all responses."""

    async def send() -> AsyncGenerator[pb.CreateDocumentRequest]:
        for request in requests:
            yield request

    call = running.documents.CreateDocument(timeout=timeout, metadata=tuple(metadata))
    async with aclosing(exchange(call, send())) as responses:  # which knows the server's status, whatever is still sent
        return [response async for response in responses]


async def raw_exchange(channel: grpc.aio.Channel, path: str, requests: Sequence[bytes]) -> None:
    """Sends bytes, whatever they are, and raises what the server says, however early: see `exchange`."""

    async def send() -> AsyncGenerator[bytes]:
        for request in requests:
            yield request

    async with aclosing(exchange(channel.stream_stream(path)(timeout=10), send())) as responses:
        async for _ in responses:
            pass


async def rest(call: Any) -> list[pb.CreateDocumentResponse]:
    """All further responses of a call that is written to and read from by hand."""
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses


async def create_document(running: Running, content: bytes = b"some text", **fields: Any) -> pb.Document:
    """The document of a whole upload."""
    responses = await create(running, [header(content, **fields), chunk(content)])
    return responses[-1].document
