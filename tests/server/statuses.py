"""Reads the status of a failed call as a client would."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

Detail = TypeVar("Detail", bound=Message)


@dataclass
class Refusal:
    """How a call ended; filled in when the `with` block is left."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    trailing: dict[str, Any] = field(default_factory=dict)
    details: list[Any] = field(default_factory=list)

    def detail(self, kind: type[Detail]) -> Detail:
        """The one detail of this kind."""
        packed = [detail for detail in self.details if detail.Is(kind.DESCRIPTOR)]
        assert len(packed) == 1, f"{kind.DESCRIPTOR.full_name} is there {len(packed)} times"
        message = kind()
        packed[0].Unpack(message)
        return message

    def has(self, kind: type[Message]) -> bool:
        return any(detail.Is(kind.DESCRIPTOR) for detail in self.details)

    @property
    def reason(self) -> str:
        return self.detail(error_details_pb2.ErrorInfo).reason

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.detail(error_details_pb2.ErrorInfo).metadata)

    @property
    def field(self) -> str:
        """The field that a BadRequest names."""
        [violation] = self.detail(error_details_pb2.BadRequest).field_violations
        assert violation.description
        return violation.field


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[Refusal]:
    """The block must end with this status."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    error = caught.value
    assert error.code() == code, f"{error.code()}: {error.details()}"
    refusal.code, refusal.message = error.code(), error.details() or ""
    refusal.trailing = dict(error.trailing_metadata() or ())
    status = rpc_status.from_call(error)
    refusal.details = list(status.details) if status else []
