"""AdminService: draining, and all tenants' documents."""

import time
from collections.abc import Callable

from reformer.v1 import admin_pb2 as pb
from reformer.v1.admin_pb2_grpc import AdminServiceServicer
from reformer_server import convert, validation
from reformer_server.cache import DocumentCache
from reformer_server.calls import Context
from reformer_server.documents import DocumentRegistry
from reformer_server.entries import Entry
from reformer_server.paging import page


class AdminService(AdminServiceServicer):
    """One method an RPC. Who may call them is decided before: `administration.py`."""

    def __init__(self, documents: DocumentRegistry, cache: DocumentCache, begin_to_drain: Callable[[], object]) -> None:
        self._documents, self._cache, self._begin_to_drain = documents, cache, begin_to_drain

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        self._begin_to_drain()
        return pb.DrainResponse()

    async def ListAllDocuments(
        self, request: pb.ListAllDocumentsRequest, context: Context
    ) -> pb.ListAllDocumentsResponse:
        page_size = validation.page_size(request)
        found, next_page_token = page(self._documents.all(), _by_size, page_size, request.page_token)
        return pb.ListAllDocumentsResponse(documents=map(self._owned, found), next_page_token=next_page_token)

    def _owned(self, entry: Entry) -> pb.OwnedDocument:
        idle_seconds = self._cache.idle_seconds(entry.key)
        in_memory = idle_seconds is not None
        return pb.OwnedDocument(
            tenant=entry.name.tenant,
            document=convert.document(entry),
            in_memory=in_memory,
            last_use_time=None if idle_seconds is None else convert.timestamp(time.time() - idle_seconds),
        )


def _by_size(entry: Entry) -> tuple[float, str, str]:
    return -entry.memory_bytes, *entry.name
