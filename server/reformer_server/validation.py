"""Requests to checked values. Whatever a client can send wrong is refused here, by the name of its field."""

import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

import torch
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from reformer.v1 import admin_pb2, document_pb2, inference_pb2, model_pb2
from reformer_core import SamplingParams
from reformer_core.errors import TooManyTokensError
from reformer_server import call_facts, tenants
from reformer_server.calls import Context
from reformer_server.content import TOKEN_ID_BYTES, DocumentName
from reformer_server.errors import InvalidFieldError
from reformer_server.served_model import ServedModel
from reformer_server.settings import Settings
from reformer_server.uploads import UploadHeader

NamesDocument = (
    document_pb2.GetDocumentRequest
    | document_pb2.RenewDocumentRequest
    | document_pb2.DeleteDocumentRequest
    | document_pb2.ReadDocumentScoresRequest
    | inference_pb2.ScoreContinuationsRequest
)
MayNameDocument = document_pb2.DocumentHeader | inference_pb2.GenerateRequest

DOCUMENT_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
DOCUMENT_ID_METADATA = "x-document-id"
SHA256_BYTES = 32
MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100
MAX_CONTINUATIONS = 1024
MAX_CONTINUATION_TOKENS = 65_536  # 8 bytes a token have to fit into one message
MAX_TOKENIZE_BYTES = 512 << 10
MAX_TOKENIZE_IMAGE_BYTES = 1_000_000
MAX_DETOKENIZE_IDS = 131_072


def document_name(request: NamesDocument, context: Context, field: str = "document_id") -> DocumentName:
    """The request's document_id, which it must have, and the caller's tenant. Raises InvalidFieldError."""
    return own_name(_well_formed(request.document_id, context, field))


def optional_document_name(
    request: MayNameDocument, context: Context, field: str = "document_id"
) -> DocumentName | None:
    """The same, or None; then the metadata must not name a document either."""
    if request.HasField("document_id"):
        return own_name(_well_formed(request.document_id, context, field))
    routed = _routed_by(context)
    if routed is not None:
        raise InvalidFieldError(field, f"is unset, but the {DOCUMENT_ID_METADATA} metadata is {_short(routed)}")
    return None


def own_name(document_id: str) -> DocumentName:
    """The caller's document of this id."""
    return DocumentName(tenants.current().name, document_id)


def _well_formed(value: str, context: Context, field: str) -> str:
    if not DOCUMENT_ID.fullmatch(value):
        raise InvalidFieldError(field, f"must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ -, but is {_short(value)}")
    routed = _routed_by(context)
    if routed not in (None, value):
        raise InvalidFieldError(
            field, f"is {_short(value)}, but the {DOCUMENT_ID_METADATA} metadata is {_short(str(routed))}"
        )
    call_facts.current().document_id = value
    return value


def _routed_by(context: Context) -> str | None:
    routed = {str(value) for key, value in context.invocation_metadata() or () if key == DOCUMENT_ID_METADATA}
    return ", ".join(sorted(routed)) or None  # several are no one's id


def content_header(
    header: document_pb2.DocumentHeader | inference_pb2.ScoreHeader,
    name: DocumentName,
    settings: Settings,
    model: ServedModel,
) -> UploadHeader:
    """What the header says about the content. Raises TooManyTokensError if that can't fit the model."""
    reads = document_pb2.CONTENT_TYPE_TEXT if model.pixels is None else document_pb2.CONTENT_TYPE_IMAGE
    if header.content_type not in (reads, document_pb2.CONTENT_TYPE_TOKEN_IDS):
        raise InvalidFieldError(
            "header.content_type",
            f"must be {_name(reads)} or CONTENT_TYPE_TOKEN_IDS for this model, which reads "
            f"{'text' if model.pixels is None else 'pictures'}, but is {_name(header.content_type)}",
        )
    max_tokens = model.max_tokens
    total = optional(header, "total_bytes")
    if total is not None:
        if header.content_type == document_pb2.CONTENT_TYPE_TOKEN_IDS and total > max_tokens * TOKEN_ID_BYTES:
            raise TooManyTokensError(total // TOKEN_ID_BYTES, max_tokens)
        if not 0 < total <= settings.max_content_bytes:
            allowed = f"must be 1 to {settings.max_content_bytes:,} bytes"
            raise InvalidFieldError("header.total_bytes", f"{allowed}, but is {total:,}")
    sha256 = header.sha256 if isinstance(header, document_pb2.DocumentHeader) and header.HasField("sha256") else None
    if sha256 is not None and len(sha256) != SHA256_BYTES:
        raise InvalidFieldError("header.sha256", f"must be {SHA256_BYTES} bytes, but is {len(sha256)}")
    return UploadHeader(name, header.content_type, total, sha256)


def lease_seconds(
    request: document_pb2.DocumentHeader | document_pb2.RenewDocumentRequest, settings: Settings, field: str
) -> float:
    """The lease that is asked for, or the default one."""
    lease: Duration | None = optional(request, "lease")
    if lease is None:
        return settings.default_lease_seconds
    seconds = lease.seconds + lease.nanos / 1e9
    if not 0 < seconds <= settings.max_lease_seconds:
        allowed = f"must be above 0 and at most {settings.max_lease_seconds:,.0f} seconds"
        raise InvalidFieldError(field, f"{allowed}, but is {seconds:,.9g}")
    return seconds


def page_size(request: document_pb2.ListDocumentsRequest | admin_pb2.ListAllDocumentsRequest) -> int:
    """Documents a page."""
    size = request.page_size if request.HasField("page_size") else DEFAULT_PAGE_SIZE
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise InvalidFieldError("page_size", f"must be 1 to {MAX_PAGE_SIZE}, but is {size}")
    return size


def token_range(request: document_pb2.ReadDocumentScoresRequest, tokens: int) -> range:
    """The tokens whose scores are wanted."""
    start = request.start_token
    end = request.end_token if request.HasField("end_token") else tokens
    if end > tokens:
        raise InvalidFieldError("end_token", f"must be at most {tokens:,}, the document's length, but is {end:,}")
    if start > end:
        raise InvalidFieldError("start_token", f"must be at most {end:,}, where the range ends, but is {start:,}")
    return range(start, end)


def sampling_params(request: inference_pb2.SamplingParams) -> SamplingParams:
    """The parameters, with a seed drawn where there is none. Raises InvalidParameterError."""
    given: dict[str, Any] = {"seed": secrets.randbits(64)}
    given |= {field.name: value for field, value in request.ListFields()}  # those that are set
    given |= {"stop": tuple(request.stop), "stop_ids": tuple(request.stop_ids)}
    return SamplingParams(**given)


def token_ids(ids: Sequence[int], field: str, vocab_size: int) -> torch.Tensor:
    """int64 [n], all in the vocabulary."""
    tensor = torch.tensor(list(ids), dtype=torch.int64)
    if len(ids) and int(tensor.max()) >= vocab_size:
        raise InvalidFieldError(field, f"ids must be below {vocab_size}, but one is {int(tensor.max())}")
    return tensor


def columns(request: model_pb2.DetokenizeRequest) -> int:
    """Pictures side by side."""
    if request.HasField("columns") and request.columns < 1:
        raise InvalidFieldError("columns", f"must be 1 or more, but is {request.columns}")
    return request.columns or 1


def deadline(context: Context) -> float | None:
    """The call's deadline as a time.monotonic() instant; None: it has none."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def optional(message: Message, field: str) -> Any:
    """The field's value, None if it is unset."""
    return getattr(message, field) if message.HasField(field) else None


def _name(content_type: "document_pb2.ContentType.ValueType") -> str:
    known = content_type in document_pb2.ContentType.values()
    return document_pb2.ContentType.Name(content_type) if known else str(content_type)


def _short(value: str) -> str:
    return repr(value if len(value) <= 140 else value[:140] + "…")
