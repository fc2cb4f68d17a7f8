"""Uploads a document; goes on from where it broke off when the connection does."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc.aio

from reformer.v1 import document_pb2
from reformer_client.calls import Call
from reformer_client.errors import InternalError, UnavailableError
from reformer_client.exchange import exchange
from reformer_client.progress import OnProgress, report
from reformer_client.sources import Content, SourceNotSeekableError

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall, StreamStreamMultiCallable

    CreateDocumentCall = StreamStreamCall[document_pb2.CreateDocumentRequest, document_pb2.CreateDocumentResponse]
    CreateDocument = StreamStreamMultiCallable[document_pb2.CreateDocumentRequest, document_pb2.CreateDocumentResponse]


class Upload:
    """One document on its way to the server, over as many connections as it takes."""

    def __init__(
        self, call: Call, header: document_pb2.DocumentHeader, content: Content, on_progress: OnProgress | None
    ) -> None:
        self._call = call
        self._header = header
        self._content = content
        self._on_progress = on_progress
        self._resume_offset = -1  # the highest so far
        self._processed_tokens = 0  # the highest so far

    async def run(self, method: "CreateDocument") -> document_pb2.Document:
        """Returns the document when the server has read it. Raises ReformerError, or the source's own error."""
        interruption: UnavailableError | None = None
        while True:
            accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            call = method(**await self._call.options())
            try:
                return await self._attempt(call, accepted)
            except grpc.aio.AioRpcError as rpc_error:
                error = self._call.error(rpc_error)
                if accepted.done() and not isinstance(error, UnavailableError):
                    raise error from None
                await self._call.attempts.wait(error)
                interruption = error if isinstance(error, UnavailableError) else interruption
            except SourceNotSeekableError as error:
                cause = interruption.message if interruption else "the server wants earlier bytes"
                message = f"{cause}; the upload can't go on: {error}"
                raise UnavailableError(message, request_id=self._call.request_id) from interruption
            except asyncio.CancelledError as error:
                raise self._call.cancelled(error) from None

    async def _attempt(self, call: "CreateDocumentCall", accepted: asyncio.Future[int]) -> document_pb2.Document:
        document = None
        async with aclosing(exchange(call, self._requests(accepted))) as responses:
            async for response in responses:
                match response.WhichOneof("event"):
                    case "accepted":
                        self._note_advance(resume_offset=response.accepted.resume_offset)
                        accepted.set_result(response.accepted.resume_offset)
                    case "progress":
                        self._note_advance(processed_tokens=response.progress.processed_tokens)
                        await report(self._on_progress, response.progress)
                    case "document":
                        document = response.document
        if document is None:
            raise InternalError("the server ended the upload without a document", request_id=self._call.request_id)
        return document

    async def _requests(self, accepted: asyncio.Future[int]) -> AsyncGenerator[document_pb2.CreateDocumentRequest]:
        """The header; and, as soon as the server has said where to start, the content from there on."""
        yield document_pb2.CreateDocumentRequest(header=self._header)
        async for chunk in chunks(self._content, await accepted):
            yield document_pb2.CreateDocumentRequest(chunk=chunk)

    def _note_advance(self, *, resume_offset: int = -1, processed_tokens: int = 0) -> None:
        """A server that got further than ever before is worth as many new attempts as at the beginning."""
        if resume_offset > self._resume_offset or processed_tokens > self._processed_tokens:
            self._call.attempts.start_anew()
        self._resume_offset = max(self._resume_offset, resume_offset)
        self._processed_tokens = max(self._processed_tokens, processed_tokens)


async def chunks(content: Content, offset: int = 0) -> AsyncGenerator[document_pb2.ContentChunk]:
    """The content from `offset` on, as it travels."""
    while data := await content.read(offset):
        yield document_pb2.ContentChunk(offset=offset, data=data)
        offset += len(data)
