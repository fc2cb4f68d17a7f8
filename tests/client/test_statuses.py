"""What gRPC says about a call that failed, and what users are told."""

import grpc
import pytest

from reformer_client import InternalError, UnavailableError
from reformer_client.statuses import from_rpc_error

RESET = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"


def failed(details: str, *trailers: tuple[str, str]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)


def test_a_call_that_a_proxy_cut() -> None:
    error = from_rpc_error(failed(RESET), "mine")
    assert type(error) is UnavailableError
    assert error.request_id == "mine"
    assert "a proxy cut the call" in str(error)
    assert RESET in str(error)


@pytest.mark.parametrize(
    ("details", "trailers"),
    [(RESET, [("x-request-id", "mine")]), ("internal error", []), ("internal error", [("x-request-id", "mine")])],
)
def test_internal_errors_of_servers(details: str, trailers: list[tuple[str, str]]) -> None:
    error = from_rpc_error(failed(details, *trailers), "mine")
    assert type(error) is InternalError
    assert error.message == details
