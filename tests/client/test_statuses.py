"""What gRPC says about a call that failed, and what users are told."""

import grpc
import pytest

from reformer_client import CancelledError, InternalError, ReformerError, UnavailableError
from reformer_client.statuses import from_rpc_error

RESET = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"


INTERNAL, CANCELLED = grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED


def failed(code: grpc.StatusCode, details: str, *trailers: tuple[str, str]) -> grpc.aio.AioRpcError:
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
