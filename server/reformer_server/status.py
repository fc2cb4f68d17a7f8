"""One table from error class to gRPC status code and `google.rpc` details; the client has the same table backwards."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from reformer_core import errors as core
from reformer_server import errors as server

ERROR_DOMAIN = "reformer"
RETRY_SECONDS = 1
# Of UTF-8. gRPC takes 8 KiB of trailing metadata: the message is there three times, percent-encoded (which triples what
# isn't ASCII) and, with the details, in base64.
MAX_TEXT_BYTES = 1000
INTERNAL_MESSAGE = "internal error; the server's log has more under request id {request_id}"

Details = Callable[[Any], list[Message]]


def _nothing(error: Exception) -> list[Message]:
    return []


def _retry_later(error: Exception) -> list[Message]:
    """After the time that the error names, if it knows one; rounded up, so that the next try isn't too early."""
    delay = Duration()
    delay.FromMilliseconds(math.ceil(1000 * getattr(error, "retry_seconds", RETRY_SECONDS)))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _bad_field(name: Callable[[Any], str]) -> Details:
    def details(error: Exception) -> list[Message]:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=name(error), description=_cut(getattr(error, "message", str(error)))
        )
        return [error_details_pb2.BadRequest(field_violations=[violation])]

    return details


def _failed_precondition(kind: str, state: Callable[[Any], str]) -> Details:
    def details(error: Any) -> list[Message]:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=kind, subject=f"documents/{error.document_id}", description=state(error)
        )
        return [error_details_pb2.PreconditionFailure(violations=[violation])]

    return details


def _quota(subject: str, retry: Callable[[Any], bool] = lambda error: True) -> Details:
    def details(error: Exception) -> list[Message]:
        violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=_cut(str(error)))
        quota = error_details_pb2.QuotaFailure(violations=[violation])
        return [quota, *(_retry_later(error) if retry(error) else [])]

    return details


@dataclass(frozen=True)
class Row:
    """What a client gets for a class of errors: a code, a reason for programs, attributes of the error, and details."""

    code: StatusCode
    reason: str
    attributes: tuple[str, ...] = ()
    details: Details = field(default=_nothing)


TABLE: Mapping[type[Exception], Row] = {
    # what the caller sent
    server.InvalidFieldError: Row(
        StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", ("field",), _bad_field(lambda error: str(error.field))
    ),
    core.InvalidParameterError: Row(
        StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", (), _bad_field(lambda error: f"sampling.{error.name}")
    ),
    core.InvalidTokensError: Row(
        StatusCode.INVALID_ARGUMENT, "INVALID_TOKENS", (), _bad_field(lambda error: "token_ids")
    ),
    core.InvalidTextError: Row(StatusCode.INVALID_ARGUMENT, "INVALID_TEXT", (), _bad_field(lambda error: "text")),
    core.TooManyTokensError: Row(StatusCode.OUT_OF_RANGE, "TOO_MANY_TOKENS", ("tokens", "max_tokens")),
    # what is there and what isn't
    server.DocumentNotFoundError: Row(StatusCode.NOT_FOUND, "DOCUMENT_NOT_FOUND", ("document_id",)),
    server.DocumentExistsError: Row(StatusCode.ALREADY_EXISTS, "DOCUMENT_EXISTS", ("document_id",)),
    server.DocumentNotReadyError: Row(
        StatusCode.FAILED_PRECONDITION,
        "DOCUMENT_NOT_READY",
        ("document_id", "state"),
        _failed_precondition("DOCUMENT_STATE", lambda error: str(error.state)),
    ),
    server.NoScoresError: Row(
        StatusCode.FAILED_PRECONDITION,
        "NO_SCORES",
        ("document_id",),
        _failed_precondition("DOCUMENT_SCORES", lambda error: "created without keep_scores"),
    ),
    server.UploadAbortedError: Row(StatusCode.ABORTED, "UPLOAD_ABORTED", ("document_id",)),
    # what there is no room for now
    core.OutOfMemoryError: Row(
        StatusCode.RESOURCE_EXHAUSTED,
        "OUT_OF_MEMORY",
        ("needed_bytes", "free_bytes", "fits_when_idle"),
        _quota("memory", retry=lambda error: bool(error.fits_when_idle)),
    ),
    MemoryError: Row(StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", (), _quota("the server's memory")),
    torch.OutOfMemoryError: Row(StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", (), _quota("device memory")),
    core.QueueFullError: Row(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", ("waiting",), _quota("waiting requests")),
    server.UploadMemoryError: Row(
        StatusCode.RESOURCE_EXHAUSTED, "UPLOAD_MEMORY", ("needed_bytes", "free_bytes"), _quota("upload memory")
    ),
    server.TooManyStreamsError: Row(
        StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", ("streams",), _quota("streams of the tenant")
    ),
    server.TokenRateError: Row(
        StatusCode.RESOURCE_EXHAUSTED, "TOKEN_RATE", ("tokens", "tokens_per_minute"), _quota("tokens of the tenant")
    ),
    # who may not call
    server.UnauthenticatedError: Row(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    server.UnknownIdentityError: Row(StatusCode.PERMISSION_DENIED, "UNKNOWN_IDENTITY"),
    server.NotAdminError: Row(StatusCode.PERMISSION_DENIED, "NOT_ADMIN"),
    server.StoreFullError: Row(
        StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL", ("needed_bytes", "free_bytes"), _quota("document store")
    ),
    server.TenantQuotaError: Row(
        StatusCode.RESOURCE_EXHAUSTED,
        "TENANT_QUOTA",
        ("resource", "wanted", "limit"),
        _quota("tenant", retry=lambda error: False),
    ),
    # what the store says
    server.OtherModelError: Row(
        StatusCode.FAILED_PRECONDITION,
        "OTHER_MODEL",
        ("document_id",),
        _failed_precondition("DOCUMENT_MODEL", lambda error: "read by another model"),
    ),
    server.StoredDocumentDamagedError: Row(StatusCode.DATA_LOSS, "DOCUMENT_DAMAGED"),
    server.StoreUnavailableError: Row(StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", (), _retry_later),
    # what ended
    server.DrainingError: Row(StatusCode.UNAVAILABLE, "DRAINING", (), _retry_later),
    server.EngineStoppedError: Row(StatusCode.UNAVAILABLE, "ENGINE_STOPPED", (), _retry_later),
    core.CancelledError: Row(StatusCode.CANCELLED, "CANCELLED"),
    core.DeadlineExceededError: Row(StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
}
"""Whatever isn't here is a bug, and told to the client as INTERNAL with a fixed text."""

BUG, EXPIRED = "INTERNAL", "DOCUMENT_EXPIRED"
REASONS = tuple(sorted({BUG, EXPIRED} | {row.reason for row in TABLE.values()}))
"""All that an error can be called."""


def row_of(error: Exception) -> Row | None:
    """The table's row for `error`'s class or its nearest base; None: a bug."""
    if core.lacks_memory(error):  # on a CPU, torch has no class for it
        return TABLE.get(type(error), TABLE[MemoryError])
    return next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), None)


def reason_of(error: Exception) -> str:
    """The word for `error` that programs go by, one of REASONS."""
    if isinstance(error, server.DocumentNotFoundError) and error.expired:
        return EXPIRED
    row = row_of(error)
    return BUG if row is None else row.reason


def to_status(error: Exception, request_id: str) -> status_pb2.Status:
    """The status for the client, details included; the first detail always is an ErrorInfo."""
    row, reason = row_of(error), reason_of(error)
    if row is None:
        message = INTERNAL_MESSAGE.format(request_id=request_id)
        return _status(StatusCode.INTERNAL, message, [_error_info(reason, {"request_id": request_id})])
    metadata = {name: _cut(str(getattr(error, name))) for name in row.attributes}
    return _status(row.code, _cut(str(error)), [_error_info(reason, metadata), *row.details(error)])


def pushback(status: status_pb2.Status) -> tuple[tuple[str, str], ...]:
    """For clients that don't look at details, in the terms of gRPC's own retries: when to try again, if it is known."""
    retry = error_details_pb2.RetryInfo()
    if not any(detail.Unpack(retry) for detail in status.details):
        return ()
    return (("grpc-retry-pushback-ms", str(retry.retry_delay.ToMilliseconds())),)


def _error_info(reason: str, metadata: Mapping[str, str]) -> Message:
    return error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=metadata)


def _status(code: StatusCode, message: str, details: list[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed: AnyMessage = status.details.add()
        packed.Pack(detail)
    return status


def _cut(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= MAX_TEXT_BYTES else encoded[: MAX_TEXT_BYTES - 3].decode(errors="ignore") + "…"
