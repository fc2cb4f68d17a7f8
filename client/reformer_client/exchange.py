"""A call with requests and responses side by side, and the status that the server ended it with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")

_FAILED_WRITE = "Internal error from Core"
_STATUS_SECONDS = 1.0
_UNREADABLE = (
    "the answer can't be read: it was damaged on its way, or the server speaks another version of the contract"
)


async def exchange(
    call: StreamStreamCall[Request, Response], requests: AsyncGenerator[Request]
) -> AsyncGenerator[Response]:
    """The responses of `call`, while `requests` are sent; if making them fails, the call ends with that error.

    Leaving the generator early cancels the call. Raises grpc.aio.AioRpcError.
    """
    status = _ServerStatus(call)
    sender = asyncio.create_task(_send(call, requests))
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            yield readable(response)  # type: ignore[misc]  # EOF's class is not told from a response's
    except grpc.aio.AioRpcError as error:
        raise await status.error(error) from None
    except asyncio.CancelledError:
        if sender.done() and not sender.cancelled() and (failure := sender.exception()):
            raise failure from None
        raise
    finally:
        call.cancel()
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


def readable(response: Response | None) -> Response:
    """The response, unless it is None: then it couldn't be parsed, which grpc.aio only logs. Raises AioRpcError."""
    if response is None:
        none = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, _UNREADABLE)
    return response


async def _send(call: StreamStreamCall[Request, Response], requests: AsyncGenerator[Request]) -> None:
    try:
        async with aclosing(requests):
            async for request in requests:
                try:
                    await call.write(request)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the call is over, and whoever reads its responses learns why
        if not call.done():
            await call.done_writing()
    except Exception:
        call.cancel()
        raise


class _ServerStatus:
    """The status that the server sent, which grpc.aio overwrites if a write fails while the call ends.

    See https://github.com/grpc/grpc/issues/36066: a call that the server refused early, with a status of its own, ends
    as INTERNAL ("Internal error from Core") about every second time. The callback below is called with each status
    that the call takes on, and keeps the real one, whether it comes before or after.
    """

    def __init__(self, call: StreamStreamCall[Any, Any]) -> None:
        self._error: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._note)

    async def error(self, seen: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The real error in place of the one that was seen; UNAVAILABLE if none comes: then the connection is gone.

        Or the server has answered without reading all, and the answer is lost.
        """
        if seen.details() != _FAILED_WRITE:
            return seen
        try:
            real = await asyncio.wait_for(self._error, _STATUS_SECONDS)
        except TimeoutError:
            real = None
        if real is not None and real.code() != grpc.StatusCode.OK:
            return real
        return grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE,
            seen.initial_metadata(),
            seen.trailing_metadata(),
            "the connection broke while the request was being sent",
        )

    def _note(self, call: StreamStreamCall[Any, Any]) -> None:
        if self._error.done() or _at_once(call.details()) == _FAILED_WRITE:
            return
        self._error.set_result(
            grpc.aio.AioRpcError(
                _at_once(call.code()),
                _at_once(call.initial_metadata()),
                _at_once(call.trailing_metadata()),
                _at_once(call.details()),
            )
        )


def _at_once(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that has nothing to wait for, as those about the status of a call that is done."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        return result.value  # type: ignore[no-any-return]
    raise RuntimeError("the status of a call that is done was not there at once")
