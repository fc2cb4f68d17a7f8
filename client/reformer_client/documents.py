"""The documents of a server: upload, find, list."""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Generator, Iterable
from contextlib import AbstractAsyncContextManager, closing

from reformer.v1 import document_pb2
from reformer_client import messages
from reformer_client.calls import Caller
from reformer_client.document import AsyncDocument, delete, renew
from reformer_client.progress import OnProgress
from reformer_client.sources import Source, open_content
from reformer_client.streams import AsyncStream
from reformer_client.upload import Upload


class Creation(Awaitable[AsyncDocument], AbstractAsyncContextManager[AsyncDocument]):
    """`await` it for a document that stays, or use it in `async with` for one that is deleted at the block's end."""

    def __init__(self, upload: Awaitable[AsyncDocument]) -> None:
        self._upload = upload
        self._document: AsyncDocument | None = None

    def __await__(self) -> Generator[object, None, AsyncDocument]:
        return self._upload.__await__()

    async def __aenter__(self) -> AsyncDocument:
        self._document = await self
        return self._document

    async def __aexit__(self, *_: object) -> None:
        if self._document is not None:
            await self._document.delete()


class AsyncDocuments:
    """The documents of a server: `client.documents`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def create(
        self,
        source: Source,
        *,
        document_id: str | None = None,
        lease_seconds: float | None = None,
        keep_scores: bool = False,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Creation:
        """Uploads `source`, and returns the document when the server has read it.

        `source`: a str is text, a Path is a file; bytes, binary files, iterables of bytes (UTF-8 text) and sequences of
        token ids work as well. `document_id`: 1 to 128 of [A-Za-z0-9._~-]; default: a new UUID. `lease_seconds`: how
        long the document is kept; default: the server's, one hour. `keep_scores`: keep the log-probability of each
        token, for `document.scores()`.

        An upload that breaks off goes on from where it was, if the source can still give the bytes from there.
        Raises TypeError or OSError for a source that can't be read, ReformerError for all else.
        """
        id = str(uuid.uuid4()) if document_id is None else document_id
        return Creation(self._create(source, id, lease_seconds, keep_scores, on_progress, timeout))

    async def _create(
        self,
        source: Source,
        document_id: str,
        lease_seconds: float | None,
        keep_scores: bool,
        on_progress: OnProgress | None,
        timeout: float | None,
    ) -> AsyncDocument:
        call = self._caller.begin(timeout, document_id)
        with closing(open_content(source)) as content:
            header = document_pb2.DocumentHeader(
                document_id=document_id,
                content_type=content.content_type,
                total_bytes=content.total_bytes,
                sha256=await content.sha256(),
                lease=messages.lease_message(lease_seconds),
                keep_scores=keep_scores,
            )
            method = self._caller.services.documents.CreateDocument
            with self._caller.traced(call, method):
                document = await Upload(call, header, content, on_progress).run(method)
        return AsyncDocument(self._caller, messages.document_info(document))

    async def get(self, document_id: str, *, timeout: float | None = None) -> AsyncDocument:
        """The document of that id; raises NotFoundError."""
        request = document_pb2.GetDocumentRequest(document_id=document_id)
        method = self._caller.services.documents.GetDocument
        response = await self._caller.unary(method, request, timeout=timeout, document_id=document_id)
        return AsyncDocument(self._caller, messages.document_info(response.document))

    def list(self, *, page_size: int | None = None, timeout: float | None = None) -> "AsyncDocumentList":
        """Iterates over all documents, oldest first. They are fetched by the page; `timeout` is for each page."""
        return AsyncDocumentList(self._caller, self._pages(page_size, timeout))

    async def _pages(
        self, page_size: int | None, timeout: float | None
    ) -> AsyncGenerator[document_pb2.ListDocumentsResponse]:
        request = document_pb2.ListDocumentsRequest(page_size=page_size)
        while True:
            page = await self._caller.unary(self._caller.services.documents.ListDocuments, request, timeout=timeout)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def renew(
        self, document_id: str, lease_seconds: float | None = None, *, timeout: float | None = None
    ) -> AsyncDocument:
        """Prolongs the lease of the document of that id; see `document.renew`."""
        return AsyncDocument(self._caller, await renew(self._caller, document_id, lease_seconds, timeout))

    async def delete(self, document_id: str, *, timeout: float | None = None) -> None:
        """Deletes the document of that id, if there is one. Calls that use it finish undisturbed."""
        await delete(self._caller, document_id, timeout)


class AsyncDocumentList(AsyncStream[document_pb2.ListDocumentsResponse, AsyncDocument]):
    """All documents of a server, page by page."""

    def __init__(self, caller: Caller, pages: AsyncGenerator[document_pb2.ListDocumentsResponse]) -> None:
        super().__init__(pages)
        self._caller = caller

    async def _receive(self, event: document_pb2.ListDocumentsResponse) -> Iterable[AsyncDocument]:
        return [AsyncDocument(self._caller, messages.document_info(document)) for document in event.documents]
