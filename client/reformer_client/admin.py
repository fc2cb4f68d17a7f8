"""What operators ask of a server: `client.admin`."""

from collections.abc import AsyncGenerator, Iterable

from reformer.v1 import admin_pb2
from reformer_client import messages
from reformer_client.calls import Caller
from reformer_client.results import OwnedDocument
from reformer_client.streams import AsyncStream


class AsyncAdmin:
    """For tenants that are admins; of a server without tenants that no other machine reaches, for everybody.

    Everybody else gets PermissionDeniedError.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def drain(self, *, timeout: float | None = None) -> None:
        """The server takes no new calls from now on, and finishes those that run; `client.load()` says how far it is.

        It goes on until it is told to end. There is no way back.
        """
        await self._caller.unary(self._caller.services.admin.Drain, admin_pb2.DrainRequest(), timeout=timeout)

    def documents(self, *, page_size: int | None = None, timeout: float | None = None) -> "AsyncOwnedDocuments":
        """Iterates over all tenants' documents, the largest first; `timeout` is for each page."""
        return AsyncOwnedDocuments(self._pages(page_size, timeout))

    async def _pages(
        self, page_size: int | None, timeout: float | None
    ) -> AsyncGenerator[admin_pb2.ListAllDocumentsResponse]:
        request = admin_pb2.ListAllDocumentsRequest(page_size=page_size)
        while True:
            page = await self._caller.unary(self._caller.services.admin.ListAllDocuments, request, timeout=timeout)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


class AsyncOwnedDocuments(AsyncStream[admin_pb2.ListAllDocumentsResponse, OwnedDocument]):
    """All tenants' documents, page by page."""

    async def _receive(self, event: admin_pb2.ListAllDocumentsResponse) -> Iterable[OwnedDocument]:
        return map(messages.owned_document, event.documents)
