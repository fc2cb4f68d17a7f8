"""DocumentService: uploads, leases, scores of documents."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

from reformer.v1 import document_pb2 as pb
from reformer.v1.document_pb2_grpc import DocumentServiceServicer
from reformer_server import convert, validation
from reformer_server.calls import Context
from reformer_server.documents import DocumentRegistry, Entry
from reformer_server.errors import NoScoresError
from reformer_server.incoming import first_message, forgetting_bad_content, receive
from reformer_server.metrics import Metrics
from reformer_server.prefills import Prefills
from reformer_server.served_model import ServedModel
from reformer_server.settings import Settings
from reformer_server.uploads import Uploads


class DocumentService(DocumentServiceServicer):
    """One method an RPC; what they share is in the registry, the uploads and the prefills."""

    def __init__(
        self,
        settings: Settings,
        model: ServedModel,
        documents: DocumentRegistry,
        uploads: Uploads,
        prefills: Prefills,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._model = model
        self._documents = documents
        self._uploads = uploads
        self._prefills = prefills
        self._metrics = metrics

    async def CreateDocument(
        self, request_iterator: AsyncIterator[pb.CreateDocumentRequest], context: Context
    ) -> AsyncIterator[pb.CreateDocumentResponse]:
        """Takes the content, and then what is cheapest: the document of this id, that of another, or reading it."""
        header = (await first_message(request_iterator)).header
        document_id = validation.optional_document_id(header, context, "header.document_id") or str(uuid.uuid4())
        lease = validation.lease_seconds(header, self._settings, "header.lease")
        announced = validation.content_header(header, document_id, self._settings, self._model)

        there = self._documents.check(announced)
        if there is not None and announced.sha256 is not None and _serves(there, header):
            # Taken before the first await: after it, the document may be gone.
            answer = self._reused(self._documents.add(document_id, there.key, there.content_bytes, there.shared, lease))
            yield _accepted(document_id, there.content_bytes)
            yield answer
            return

        async with self._uploads.hold(announced) as upload:
            yield _accepted(document_id, upload.nbytes)
            await receive(request_iterator, upload)
            content = upload.finish()
            self._documents.check(replace(announced, total_bytes=upload.nbytes, sha256=content.key.sha256))
            shared = self._documents.find(content.key, with_scores=header.keep_scores)
            if shared is not None:
                answer = self._reused(self._documents.add(document_id, content.key, upload.nbytes, shared, lease))
            else:
                upload.state = "prefilling"
                async with self._prefills.follow(content, keep_scores=header.keep_scores) as prefill:
                    async for progress in prefill.progress():
                        yield pb.CreateDocumentResponse(progress=convert.progress(progress))
                    with forgetting_bad_content(upload):
                        shared = prefill.result()
                    entry = self._documents.add(document_id, content.key, upload.nbytes, shared, lease)
                answer = pb.CreateDocumentResponse(document=convert.document(entry))
            upload.forget()
        yield answer

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Context) -> pb.GetDocumentResponse:
        entry = self._documents.get(validation.document_id(request, context))
        return pb.GetDocumentResponse(document=convert.document(entry))

    async def ListDocuments(self, request: pb.ListDocumentsRequest, context: Context) -> pb.ListDocumentsResponse:
        entries, next_page_token = self._documents.page(validation.page_size(request), request.page_token)
        return pb.ListDocumentsResponse(
            documents=[convert.document(entry) for entry in entries], next_page_token=next_page_token
        )

    async def RenewDocument(self, request: pb.RenewDocumentRequest, context: Context) -> pb.RenewDocumentResponse:
        document_id = validation.document_id(request, context)
        entry = self._documents.renew(document_id, validation.lease_seconds(request, self._settings, "lease"))
        return pb.RenewDocumentResponse(document=convert.document(entry))

    async def DeleteDocument(self, request: pb.DeleteDocumentRequest, context: Context) -> pb.DeleteDocumentResponse:
        self._documents.delete(validation.document_id(request, context))
        return pb.DeleteDocumentResponse()

    async def ReadDocumentScores(
        self, request: pb.ReadDocumentScoresRequest, context: Context
    ) -> AsyncIterator[pb.ReadDocumentScoresResponse]:
        document_id = validation.document_id(request, context)
        async with self._documents.use(document_id) as document:
            if document.scores is None:
                raise NoScoresError(document_id)
            wanted = validation.token_range(request, document.tokens)
            part = slice(wanted.start, wanted.stop)
            decoder = self._model.tokenizer.decoder(continues=wanted.start > 0)
            blocks = convert.score_blocks(wanted.start, document.scores[part], document.token_ids[part], decoder)
            for block in blocks:
                yield pb.ReadDocumentScoresResponse(scores=block)

    def _reused(self, entry: Entry) -> pb.CreateDocumentResponse:
        self._metrics.prefill_tokens.labels("cached").inc(entry.document.tokens)
        return pb.CreateDocumentResponse(document=convert.document(entry, cached=True))


def _accepted(document_id: str, resume_offset: int) -> pb.CreateDocumentResponse:
    return pb.CreateDocumentResponse(accepted=pb.UploadAccepted(document_id=document_id, resume_offset=resume_offset))


def _serves(entry: Entry, header: pb.DocumentHeader) -> bool:
    """Whether the document that is there has what this header asks for."""
    return entry.document.scores is not None or not header.keep_scores
