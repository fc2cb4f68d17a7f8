"""The status of a call whose writing failed: the server's own, or that it is gone."""

from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest

from reformer_client import exchange

FAILED_WRITE = grpc.aio.AioRpcError(
    grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "Internal error from Core"
)


class CallThatSucceeded:
    """A call whose server answered before it had read all."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    async def details(self) -> str:
        return ""

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    trailing_metadata = initial_metadata


class CallWithoutStatus:
    """A call whose server never sends a status."""

    def add_done_callback(self, callback: object) -> None:
        pass


async def test_a_write_that_fails_without_any_status_means_that_the_server_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "_STATUS_SECONDS", 0.01)
    status = exchange._ServerStatus(CallWithoutStatus())
    error = await status.error(FAILED_WRITE)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "broke" in (error.details() or "")


async def test_an_answer_that_was_lost_is_no_success() -> None:
    error = await exchange._ServerStatus(CallThatSucceeded()).error(FAILED_WRITE)
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_other_errors_are_passed_on() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "a bug")
    assert await exchange._ServerStatus(CallWithoutStatus()).error(error) is error
