"""The typed error of a call that failed, from what gRPC says about it."""

from collections.abc import Mapping
from contextlib import suppress

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from reformer_client.errors import ERROR_CLASSES, ReformerError, UnavailableError

_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"
_KINDS: Mapping[str, type[Message]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (
        error_details_pb2.BadRequest,
        error_details_pb2.ErrorInfo,
        error_details_pb2.PreconditionFailure,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RetryInfo,
    )
}


def from_rpc_error(error: grpc.aio.AioRpcError, request_id: str) -> ReformerError:
    """The typed error of a failed call; `request_id` is the client's own, in case the server names none."""
    trailers = dict(error.trailing_metadata() or ())
    if _was_cut(error) and _REQUEST_ID_KEY not in trailers:
        message = f"the server is gone, or the connection to it: the call was cut ({error.details()})"
        return UnavailableError(message, request_id=request_id)
    named = trailers.get(_REQUEST_ID_KEY, request_id)
    return ERROR_CLASSES[error.code()](
        error.details() or f"the call ended with {error.code().name} and no message",
        request_id=named if isinstance(named, str) else named.decode(),
        details=_unpack(trailers.get(_DETAILS_KEY, b"")),
    )


def _was_cut(error: grpc.aio.AioRpcError) -> bool:
    """Whether nobody has given the call a status, as this server always does, with a request id.

    Its stream was reset, which is all that a proxy can do once it has passed on a part of an answer: gRPC takes that
    for a server's INTERNAL. Or the server stopped before it took the call: gRPC calls that CANCELLED.
    """
    if error.code() is grpc.StatusCode.INTERNAL:
        return "RST_STREAM" in (error.details() or "")
    return error.code() is grpc.StatusCode.CANCELLED


def _unpack(encoded: str | bytes) -> list[Message]:
    """The details of an encoded `google.rpc.Status`, less those of unknown kinds, and what can't be read.

    A proxy may have written them, or damaged them; the status counts without them as well.
    """
    status = status_pb2.Status()
    with suppress(DecodeError):
        status.ParseFromString(encoded if isinstance(encoded, bytes) else encoded.encode())
    found: list[Message] = []
    for packed in status.details:
        if (kind := _KINDS.get(packed.TypeName())) is not None:
            with suppress(DecodeError):
                found.append(kind.FromString(packed.value))
    return found
