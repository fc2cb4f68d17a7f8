"""DocumentService: uploads, leases, scores of documents."""

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

from reformer.v1 import document_pb2 as pb
from reformer.v1.document_pb2_grpc import DocumentServiceServicer
from reformer_core.errors import DeadlineExceededError
from reformer_server import call_facts, convert, tenants, validation
from reformer_server.cache import DocumentCache
from reformer_server.calls import Context
from reformer_server.content import ContentKey, DocumentName
from reformer_server.documents import DocumentRegistry
from reformer_server.engine_thread import EngineThread
from reformer_server.entries import Entry
from reformer_server.errors import NoScoresError
from reformer_server.incoming import first_message, forgetting_bad_content, receive
from reformer_server.metrics import Metrics
from reformer_server.paging import page
from reformer_server.prefills import Prefills
from reformer_server.served_model import ServedModel
from reformer_server.settings import Settings
from reformer_server.tenants import Limits
from reformer_server.uploads import Uploads


class DocumentService(DocumentServiceServicer):
    """One method an RPC; what they share is in the registry, the uploads and the prefills."""

    def __init__(
        self,
        settings: Settings,
        model: ServedModel,
        engine: EngineThread,
        documents: DocumentRegistry,
        cache: DocumentCache,
        uploads: Uploads,
        prefills: Prefills,
        metrics: Metrics,
        before_told: Callable[[Entry], Awaitable[None]],
    ) -> None:
        """`before_told` is awaited before a client is told of a new document."""
        self._settings = settings
        self._model = model
        self._engine = engine
        self._documents = documents
        self._cache = cache
        self._uploads = uploads
        self._prefills = prefills
        self._metrics = metrics
        self._before_told = before_told

    async def CreateDocument(
        self, request_iterator: AsyncIterator[pb.CreateDocumentRequest], context: Context
    ) -> AsyncIterator[pb.CreateDocumentResponse]:
        """Takes the content, and then what is cheapest: the document of this id, that of another, or reading it."""
        header = (await first_message(request_iterator)).header
        name = validation.optional_document_name(header, context, "header.document_id")
        name = name or validation.own_name(str(uuid.uuid4()))
        call_facts.current().document_id = name.document_id
        deadline = validation.deadline(context)
        lease = validation.lease_seconds(header, self._settings, "header.lease")
        announced = validation.content_header(header, name, self._settings, self._model)
        there = await self._documents.check(announced)
        if there is not None and announced.sha256 is not None and _serves(there, header):
            # Prolonged before the next await: after it, the document may be gone.
            entry = self._documents.prolong(there, lease)
            yield _accepted(name, there.content_bytes)
            await self._before_told(entry)
            yield self._reused(entry)
            return
        tenant = tenants.current()
        self._documents.check_limits(name, tenant.limits)
        self._engine.check_queue(tenant.name)  # before the content is sent

        # grpc.aio forgets that it has sent headers if the first write is cancelled, as `hold` may do; then no status is
        # sent, and the client waits for ever.
        await context.send_initial_metadata(())
        async with self._uploads.hold(announced) as upload:
            yield _accepted(name, upload.nbytes)
            await receive(request_iterator, upload)
            content = upload.finish()
            await self._documents.check(replace(announced, total_bytes=upload.nbytes, sha256=content.key.sha256))
            cached = self._cache.get(content.key, with_scores=header.keep_scores)
            if cached is not None:
                self._metrics.lookups.labels("hit").inc()
                entry = self._documents.add(name, upload.nbytes, cached, lease)
                answer = partial(self._reused, entry)
            else:
                upload.state = "prefilling"
                check = partial(self._check_document, name, tenant.limits, content.key, deadline)
                async with self._prefills.follow(content, check, keep_scores=header.keep_scores) as work:
                    async for progress in work.progress():
                        yield pb.CreateDocumentResponse(progress=convert.progress(progress))
                    with forgetting_bad_content(upload):
                        reading = await work.result()
                    entry = self._documents.add(name, upload.nbytes, reading.cached, lease)
                    answer = partial(_created, entry, restored=reading.restored)
                self._metrics.lookups.labels("restored" if reading.restored else "miss").inc()
            upload.forget()
        await self._before_told(entry)
        yield answer()

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Context) -> pb.GetDocumentResponse:
        entry = await self._documents.get(validation.document_name(request, context))
        return pb.GetDocumentResponse(document=convert.document(entry))

    async def ListDocuments(self, request: pb.ListDocumentsRequest, context: Context) -> pb.ListDocumentsResponse:
        page_size = validation.page_size(request)
        entries = await self._documents.all_of(tenants.current().name)
        found, next_page_token = page(entries, _by_age, page_size, request.page_token)
        return pb.ListDocumentsResponse(
            documents=[convert.document(entry) for entry in found], next_page_token=next_page_token
        )

    async def RenewDocument(self, request: pb.RenewDocumentRequest, context: Context) -> pb.RenewDocumentResponse:
        name = validation.document_name(request, context)
        entry = await self._documents.renew(name, validation.lease_seconds(request, self._settings, "lease"))
        return pb.RenewDocumentResponse(document=convert.document(entry))

    async def DeleteDocument(self, request: pb.DeleteDocumentRequest, context: Context) -> pb.DeleteDocumentResponse:
        await self._documents.delete(validation.document_name(request, context))
        return pb.DeleteDocumentResponse()

    async def ReadDocumentScores(
        self, request: pb.ReadDocumentScoresRequest, context: Context
    ) -> AsyncIterator[pb.ReadDocumentScoresResponse]:
        name = validation.document_name(request, context)
        async with self._documents.use(name) as in_use:
            document = in_use.document
            if document.scores is None:
                raise NoScoresError(name.document_id)
            wanted = validation.token_range(request, document.tokens)
            part = slice(wanted.start, wanted.stop)
            decoder = self._model.tokenizer.decoder(continues=wanted.start > 0)
            blocks = convert.score_blocks(wanted.start, document.scores[part], document.token_ids[part], decoder)
            for block in blocks:
                yield pb.ReadDocumentScoresResponse(scores=block)

    def _check_document(
        self,
        name: DocumentName,
        limits: Limits,
        key: ContentKey,
        deadline: float | None,
        tokens: int,
        document_bytes: int,
    ) -> None:
        """Raises TenantQuotaError; and DeadlineExceededError if reading can't be over in time, by far."""
        self._documents.check_limits(name, limits, key, document_bytes)
        speed = self._engine.load.prefill_speed
        if deadline is not None and speed is not None:
            seconds, left = tokens / speed, deadline - time.monotonic()
            if seconds > left:
                raise DeadlineExceededError(
                    f"reading {tokens:,} tokens takes at least {seconds:.1f} s, but the deadline is in {left:.1f} s"
                )

    def _reused(self, entry: Entry) -> pb.CreateDocumentResponse:
        call_facts.current().cached_tokens = entry.tokens
        self._metrics.prefill_tokens.labels("cached").inc(entry.tokens)
        return pb.CreateDocumentResponse(document=convert.document(entry, cached=True))


def _created(entry: Entry, *, restored: bool) -> pb.CreateDocumentResponse:
    return pb.CreateDocumentResponse(document=convert.document(entry, cached=restored))


def _by_age(entry: Entry) -> tuple[float, str]:
    return entry.create_time, entry.name.document_id


def _accepted(name: DocumentName, resume_offset: int) -> pb.CreateDocumentResponse:
    accepted = pb.UploadAccepted(document_id=name.document_id, resume_offset=resume_offset)
    return pb.CreateDocumentResponse(accepted=accepted)


def _serves(entry: Entry, header: pb.DocumentHeader) -> bool:
    """Whether the document that is there has what this header asks for."""
    return entry.has_scores or not header.keep_scores
