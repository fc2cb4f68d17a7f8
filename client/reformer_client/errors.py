"""Errors of the client: one class a gRPC status.

ReformerError
├── CancelledError             CANCELLED            the call was cancelled, or its client was closed
├── UnknownError               UNKNOWN              a proxy or a server that speaks another language
├── InvalidArgumentError       INVALID_ARGUMENT     a bad field: see `field_violations`
├── DeadlineExceededError      DEADLINE_EXCEEDED    `timeout` passed (also a TimeoutError)
├── NotFoundError              NOT_FOUND            no such document, or its lease ended: see `reason`
├── AlreadyExistsError         ALREADY_EXISTS       the document id is taken by other content
├── PermissionDeniedError      PERMISSION_DENIED    the credentials don't allow it
├── ResourceExhaustedError     RESOURCE_EXHAUSTED   no memory or no place in the queue now
├── FailedPreconditionError    FAILED_PRECONDITION  the document isn't ready, or other weights made it
├── AbortedError               ABORTED              a conflict with another call
├── OutOfRangeError            OUT_OF_RANGE         longer than the model's positions: see `metadata`
├── UnimplementedError         UNIMPLEMENTED        an older server, or no Reformer server at all
├── InternalError              INTERNAL             a bug: report the `request_id`
├── UnavailableError           UNAVAILABLE          server down, draining or unreachable
├── DataLossError              DATA_LOSS            the stored document was damaged, and dropped
└── UnauthenticatedError       UNAUTHENTICATED      no or wrong credentials
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2

_Detail = TypeVar("_Detail", bound=Message)


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request that can't be used."""

    field: str
    description: str


@dataclass(frozen=True)
class PreconditionViolation:
    """A condition that isn't met: its kind, what it is about, and what to do."""

    type: str
    subject: str
    description: str


class ReformerError(Exception):
    """Base of all errors that a call can end with."""

    code: ClassVar[grpc.StatusCode]
    """The gRPC status."""

    def __init__(self, message: str, *, request_id: str = "", details: Sequence[Message] = ()) -> None:
        super().__init__(message)
        self.message = message
        """What went wrong, as the server says it."""
        self.request_id = request_id
        """Names the call in the server's log; empty if there was no call."""
        self.details = tuple(details)
        """The `google.rpc` messages that came with the status; the properties below read them."""

    def __str__(self) -> str:
        return f"{self.message} (request {self.request_id})" if self.request_id else self.message

    def _all(self, kind: type[_Detail]) -> Iterator[_Detail]:
        return (detail for detail in self.details if isinstance(detail, kind))

    @property
    def field_violations(self) -> tuple[FieldViolation, ...]:
        """The fields that the server refused."""
        found = (
            violation for detail in self._all(error_details_pb2.BadRequest) for violation in detail.field_violations
        )
        return tuple(FieldViolation(violation.field, violation.description) for violation in found)

    @property
    def reason(self) -> str | None:
        """The cause as a constant, such as "DOCUMENT_EXPIRED"."""
        return next((detail.reason for detail in self._all(error_details_pb2.ErrorInfo)), None)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Facts that belong to `reason`, such as {"max_tokens": "1048576"}."""
        return next((dict(detail.metadata) for detail in self._all(error_details_pb2.ErrorInfo)), {})

    @property
    def retry_after_seconds(self) -> float | None:
        """When the server thinks that another try may work."""
        delays = (detail.retry_delay for detail in self._all(error_details_pb2.RetryInfo))
        return next((delay.seconds + delay.nanos / 1e9 for delay in delays), None)

    @property
    def precondition_violations(self) -> tuple[PreconditionViolation, ...]:
        """The conditions that aren't met."""
        found = (v for detail in self._all(error_details_pb2.PreconditionFailure) for v in detail.violations)
        return tuple(PreconditionViolation(v.type, v.subject, v.description) for v in found)

    @property
    def quota_violations(self) -> tuple[str, ...]:
        """What there was not enough of, in words."""
        found = (v for detail in self._all(error_details_pb2.QuotaFailure) for v in detail.violations)
        return tuple(violation.description for violation in found)

    @property
    def needed_bytes(self) -> int | None:
        """Memory that the request needs, in bytes, if the lack of it is what went wrong."""
        return self._quota_bytes("needed_bytes", r"needs ([\d,]+) bytes")

    @property
    def free_bytes(self) -> int | None:
        """Memory that was free, in bytes, if the lack of it is what went wrong."""
        return self._quota_bytes("free_bytes", r"([\d,]+) are free")

    def _quota_bytes(self, key: str, pattern: str) -> int | None:
        if (value := self.metadata.get(key, "")).isdecimal():
            return int(value)
        matches = (re.search(pattern, description) for description in self.quota_violations)
        return next((int(match[1].replace(",", "")) for match in matches if match), None)


class CancelledError(ReformerError):
    """The call was cancelled, or its client was closed."""

    code = grpc.StatusCode.CANCELLED


class UnknownError(ReformerError):
    """Something between here and the server failed in a way that has no status of its own."""

    code = grpc.StatusCode.UNKNOWN


class InvalidArgumentError(ReformerError):
    """The request can't be used as it is; `field_violations` names the fields."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class DeadlineExceededError(ReformerError, TimeoutError):
    """The call's `timeout` passed before it was finished."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class NotFoundError(ReformerError):
    """There is no such document (any more)."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(ReformerError):
    """The document id belongs to other content."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDeniedError(ReformerError):
    """The credentials don't allow this call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhaustedError(ReformerError):
    """The server has no memory or no place for the request now; see `needed_bytes` and `free_bytes`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPreconditionError(ReformerError):
    """The document isn't ready, has no scores, or was made by other weights; see `precondition_violations`."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(ReformerError):
    """Another call got in the way."""

    code = grpc.StatusCode.ABORTED


class OutOfRangeError(ReformerError):
    """The sequence is longer than the model has positions for."""

    code = grpc.StatusCode.OUT_OF_RANGE


class UnimplementedError(ReformerError):
    """The server doesn't know this method."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(ReformerError):
    """The server has a bug; `request_id` finds it in the server's log."""

    code = grpc.StatusCode.INTERNAL


class UnavailableError(ReformerError):
    """The server is down, draining, restarting or unreachable."""

    code = grpc.StatusCode.UNAVAILABLE


class DataLossError(ReformerError):
    """The stored document was damaged, and the server dropped it."""

    code = grpc.StatusCode.DATA_LOSS


class UnauthenticatedError(ReformerError):
    """The credentials are missing or wrong."""

    code = grpc.StatusCode.UNAUTHENTICATED


ERROR_CLASSES: Mapping[grpc.StatusCode, type[ReformerError]] = {cls.code: cls for cls in ReformerError.__subclasses__()}
"""The class of each status but OK."""
