"""Makes the calls: metadata, deadline, retries and typed errors, the same for every method."""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import grpc.aio

from reformer_client.connection import Connection
from reformer_client.errors import CancelledError, ReformerError
from reformer_client.exchange import exchange, readable
from reformer_client.retry import Attempts, RetryPolicy
from reformer_client.services import Services
from reformer_client.statuses import from_rpc_error

if TYPE_CHECKING:
    from grpc.aio import StreamStreamMultiCallable, UnaryStreamMultiCallable, UnaryUnaryMultiCallable
    from opentelemetry.trace import TracerProvider

    from reformer_client.tracing import CallTracer

Request = TypeVar("Request")
Response = TypeVar("Response")

UNARY_TIMEOUT_SECONDS = 30.0
"""Deadline of calls with one short answer, if neither the call nor the client has one."""


class CallOptions(TypedDict):
    """What gRPC is told with each attempt."""

    timeout: float | None
    metadata: grpc.aio.Metadata


class Call:
    """One call as its user sees it, over all its attempts."""

    def __init__(self, services: Services, attempts: Attempts, document_id: str | None) -> None:
        self.attempts = attempts
        self.request_id = str(uuid.uuid4())
        self.document_id = document_id
        self.trace_headers: tuple[tuple[str, str], ...] = ()
        self._services = services

    async def options(self) -> CallOptions:
        """Deadline and metadata for the next attempt."""
        self._services.require_open()
        metadata = [("x-request-id", self.request_id), *await self._services.connection.authorization()]
        metadata += self.trace_headers
        if self.document_id is not None:
            metadata.append(("x-document-id", self.document_id))
        return {"timeout": self.attempts.remaining_seconds, "metadata": grpc.aio.Metadata(*metadata)}

    def error(self, error: grpc.aio.AioRpcError) -> ReformerError:
        """The typed error of a failed attempt."""
        return from_rpc_error(error, self.request_id)

    def cancelled(self, error: asyncio.CancelledError) -> BaseException:
        """The same error if the user's task was cancelled; another if it was the call, by closing its client."""
        task = asyncio.current_task()
        if task is not None and task.cancelling() > 0:
            return error
        return CancelledError("the client was closed while the call was running", request_id=self.request_id)


class Caller:
    """Makes calls over one connection."""

    def __init__(
        self,
        connection: Connection,
        retry: RetryPolicy,
        timeout_seconds: float | None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.services = Services(connection)
        self._retry = retry
        self._timeout_seconds = timeout_seconds
        self._tracer: CallTracer | None = None
        if tracer_provider is not None:
            from reformer_client.tracing import CallTracer  # else nothing of OpenTelemetry is ever imported

            self._tracer = CallTracer(tracer_provider, connection.server)

    def begin(
        self, timeout: float | None, document_id: str | None = None, default_timeout: float | None = None
    ) -> Call:
        """A new call; of several deadlines the call's own counts, then the client's, then the method's."""
        seconds = next((each for each in (timeout, self._timeout_seconds, default_timeout) if each is not None), None)
        if seconds is not None and not seconds > 0:
            raise ValueError(f"timeout is in seconds and must be above 0, but is {seconds}")
        if document_id is not None and not re.fullmatch(r"[A-Za-z0-9._~-]{1,128}", document_id):  # a header, too
            raise ValueError(f"a document's id must be 1 to 128 characters of [A-Za-z0-9._~-], but is {document_id!r}")
        return Call(self.services, Attempts(self._retry, None if seconds == math.inf else seconds), document_id)

    def traced(self, call: Call, method: object) -> AbstractContextManager[None]:
        """Around the making of a call: its span, if there are traces."""
        if self._tracer is None:
            return nullcontext()
        return self._tracer.span(call, self.services.name_of(method))

    async def unary(
        self,
        method: UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout: float | None,
        document_id: str | None = None,
    ) -> Response:
        """One request, one response. All such methods are idempotent, and are tried again."""
        call = self.begin(timeout, document_id, UNARY_TIMEOUT_SECONDS)
        with self.traced(call, method):
            while True:
                try:
                    return readable(await method(request, **await call.options()))
                except grpc.aio.AioRpcError as error:
                    await call.attempts.wait(call.error(error))
                except asyncio.CancelledError as error:
                    raise call.cancelled(error) from None

    def stream(
        self,
        method: UnaryStreamMultiCallable[Request, Response],
        request: Request,
        *,
        timeout: float | None,
        document_id: str | None = None,
        is_result: Callable[[Response], bool] = lambda response: True,
    ) -> AsyncGenerator[Response]:
        """One request, many responses. Leaving the generator early cancels the call.

        Until a response `is_result`, the call is made again where that makes sense; what came before may then come
        once more.
        """
        call = self.begin(timeout, document_id)
        traced = self.traced(call, method)
        return _responses(call, traced, lambda options: _receive(method(request, **options)), is_result)

    def exchange(
        self,
        method: StreamStreamMultiCallable[Request, Response],
        requests: Callable[[], AsyncGenerator[Request]],
        *,
        timeout: float | None,
        is_result: Callable[[Response], bool],
    ) -> AsyncGenerator[Response]:
        """Many requests, many responses. `requests` is called once an attempt and starts from the beginning."""
        call = self.begin(timeout)
        traced = self.traced(call, method)
        return _responses(call, traced, lambda options: exchange(method(**options), requests()), is_result)


async def _responses(
    call: Call,
    traced: AbstractContextManager[None],
    attempt: Callable[[CallOptions], AsyncGenerator[Response]],
    is_result: Callable[[Response], bool],
) -> AsyncGenerator[Response]:
    """The responses of the first attempt that has a result."""
    received = False
    with traced:
        while True:
            try:
                async with aclosing(attempt(await call.options())) as responses:
                    async for response in responses:
                        received = received or is_result(response)
                        yield response
                return
            except grpc.aio.AioRpcError as error:
                if received:
                    raise call.error(error) from None
                await call.attempts.wait(call.error(error))
            except asyncio.CancelledError as error:
                raise call.cancelled(error) from None


async def _receive(call: grpc.aio.UnaryStreamCall[Any, Response]) -> AsyncGenerator[Response]:
    try:
        async for response in call:
            yield readable(response)
    finally:
        call.cancel()  # nothing happens if it is over
