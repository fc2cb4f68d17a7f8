"""A gRPC server that survives calls of methods that it doesn't have, whatever bytes they are named by.

grpc.aio decodes the name of such a method where it accepts calls; a byte that is no UTF-8 there, from anybody who can
reach the port, ends the accepting of calls for good (seen in grpcio 1.85.1). The methods that a server has are
registered and never come this way, so all that do are answered here, and their names not looked at.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

_cygrpc: Any = cygrpc  # grpc.aio's own parts, which have no types
NOT_HERE = "this server has no such method"


class _Accepting(_cygrpc.AioServer):  # type: ignore[misc]
    """What accepts calls."""

    async def _request_call(self) -> Any:
        """Called for the next call of a method that isn't registered. Never returns; raises at the end."""
        answering: set[asyncio.Task[None]] = set()
        while True:
            call = await super()._request_call()
            task = asyncio.create_task(_refuse(call))
            answering.add(task)
            task.add_done_callback(answering.discard)


async def _refuse(call: Any) -> None:
    context = _cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
    with suppress(grpc.aio.BaseError, asyncio.CancelledError):  # AbortError, which `abort` always raises, among them
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, NOT_HERE, ())


def grpc_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, int]]
) -> grpc.aio.Server:
    """As `grpc.aio.server`; all services must be added as registered methods, which generated code does."""
    server: Any = grpc.aio.server(interceptors=interceptors, options=options)
    server._server = _Accepting(asyncio.get_running_loop(), None, (), tuple(interceptors), tuple(options), None)
    return server  # type: ignore[no-any-return]
