"""What gRPC says about a call that failed, and what users are told."""

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import RetryInfo

from reformer_client import CancelledError, InternalError, ReformerError, UnavailableError
from reformer_client.statuses import from_rpc_error

RESET = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"


INTERNAL, CANCELLED = grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED


def failed(code: grpc.StatusCode, details: str, *trailers: tuple[str, str | bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)


@pytest.mark.parametrize(("code", "details"), [(INTERNAL, RESET), (CANCELLED, "CANCELLED")])
def test_a_call_that_was_cut(code: grpc.StatusCode, details: str) -> None:
    error = from_rpc_error(failed(code, details), "mine")
    assert type(error) is UnavailableError
    assert error.request_id == "mine"
    assert "the call was cut" in str(error)
    assert details in str(error)


@pytest.mark.parametrize(("code", "cls"), [(INTERNAL, InternalError), (CANCELLED, CancelledError)])
@pytest.mark.parametrize("details", [RESET, "as the server says"])
def test_what_the_server_says_itself(code: grpc.StatusCode, cls: type[ReformerError], details: str) -> None:
    error = from_rpc_error(failed(code, details, ("x-request-id", "the server's")), "mine")
    assert type(error) is cls
    assert (error.message, error.request_id) == (details, "the server's")


def test_other_internal_errors() -> None:
    assert type(from_rpc_error(failed(INTERNAL, "can't be read"), "mine")) is InternalError


@pytest.mark.parametrize("details", [b"\xff", b"\x1a\x02\x0a\xff", "no base64"])
def test_details_that_are_none(details: bytes | str) -> None:
    """Whoever wrote them, the status is what counts."""
    trailers = (("x-request-id", "the server's"), ("grpc-status-details-bin", details))
    error = from_rpc_error(failed(grpc.StatusCode.UNAVAILABLE, "gone", *trailers), "mine")
    assert type(error) is UnavailableError
    assert (error.message, error.details, error.retry_after_seconds) == ("gone", (), None)


def test_a_detail_that_is_none() -> None:
    status = status_pb2.Status()
    for value in (b"\xff", RetryInfo(retry_delay=Duration(seconds=3)).SerializeToString()):
        status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=value)
    trailer = ("grpc-status-details-bin", status.SerializeToString())
    error = from_rpc_error(failed(grpc.StatusCode.UNAVAILABLE, "gone", trailer), "mine")
    assert error.retry_after_seconds == 3
