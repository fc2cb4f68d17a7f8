"""Clients in processes of their own, to be killed; each says a word when it has got to where that is to happen.

    python clients.py KIND ADDRESS ID

Kinds: `uploading` has sent a part of its content, `reading` has heard of progress, `generating` has got a token.
"""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator

import grpc.aio

from reformer.v1 import document_pb2, document_pb2_grpc
from reformer_client import Client, Progress

CONTENT_BYTES, SENT_BYTES = 200_000, 50_000


def content(document_id: str) -> bytes:
    """Another one for each document."""
    return (f"{document_id} " * CONTENT_BYTES).encode()[:CONTENT_BYTES]


def header(document_id: str) -> document_pb2.CreateDocumentRequest:
    """What the SDK would announce."""
    announced = document_pb2.DocumentHeader(
        document_id=document_id,
        content_type=document_pb2.CONTENT_TYPE_TEXT,
        total_bytes=CONTENT_BYTES,
        sha256=hashlib.sha256(content(document_id)).digest(),
    )
    return document_pb2.CreateDocumentRequest(header=announced)


def say(word: str) -> None:
    print(word, flush=True)


def uploading(address: str, document_id: str) -> None:
    async def requests() -> AsyncIterator[document_pb2.CreateDocumentRequest]:
        yield header(document_id)
        part = document_pb2.ContentChunk(offset=0, data=content(document_id)[:SENT_BYTES])
        yield document_pb2.CreateDocumentRequest(chunk=part)
        await asyncio.sleep(0.1)  # it has left this process; nobody says when it has arrived
        say("sent")
        await asyncio.Event().wait()

    async def upload() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            async for _ in document_pb2_grpc.DocumentServiceStub(channel).CreateDocument(requests()):
                pass

    asyncio.run(upload())


def reading(address: str, document_id: str) -> None:
    def tell(progress: Progress) -> None:
        say("progress")

    Client(address).documents.create(content(document_id), document_id=document_id, on_progress=tell)


def generating(address: str, document_id: str) -> None:
    for token in Client(address).generate(document_id, max_tokens=100_000):
        say(str(token.id))


if __name__ == "__main__":
    {"uploading": uploading, "reading": reading, "generating": generating}[sys.argv[1]](*sys.argv[2:])
