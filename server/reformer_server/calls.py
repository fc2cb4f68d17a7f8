"""What every call passes through: a chain of async context managers around its handler, applied by one interceptor."""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from reformer_server import call_facts
from reformer_server.call_facts import CallFacts
from reformer_server.errors import InvalidFieldError

REQUEST_ID_METADATA = "x-request-id"
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
OWN_METHODS = "/reformer."

Context = grpc.aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]


@dataclass(frozen=True)
class Call:
    """One call, for whoever stands around it."""

    method: str  # "DocumentService/CreateDocument"
    streaming: bool  # whether it has many responses, over a while
    context: Context
    facts: CallFacts
    arrived: float = field(default_factory=time.monotonic)

    @property
    def request_id(self) -> str:
        """What the client's and the server's log know it by."""
        return self.facts.request_id

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call ends with."""
        return ((REQUEST_ID_METADATA, self.request_id),)


Around = Callable[[Call], AbstractAsyncContextManager[None]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Puts `chain` around every call of the reformer's own services, the first of it outermost.

    Handlers of streams are async generators; they are closed here as soon as the call ends, however it ends, so that a
    cancelled call lets go of its work at once and not when the garbage collector finds it.
    """

    def __init__(self, chain: Sequence[Around]) -> None:
        self._chain = chain

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        full_method = handler_call_details.method
        if handler is None or not full_method.startswith(OWN_METHODS):
            return handler
        method = full_method.rpartition(".")[2]
        if handler.response_streaming:
            return self._around_stream(method, handler)
        assert handler.unary_unary is not None, f"{full_method}: no RPC of this contract is client-streaming only"
        return self._around_unary(method, handler)

    def _around_unary(self, method: str, handler: "Handler") -> "Handler":
        behave: Any = handler.unary_unary

        async def unary(request: bytes, context: Context) -> Any:
            async with AsyncExitStack() as stack:
                await self._enter(stack, method, False, context)
                return await behave(_parsed(request, handler), context)

        return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)

    def _around_stream(self, method: str, handler: "Handler") -> "Handler":
        behave: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(request: Any, context: Context) -> None:
            async with AsyncExitStack() as stack:
                await self._enter(stack, method, True, context)
                parsed = _ParsedRequests(request, handler) if handler.request_streaming else _parsed(request, handler)
                responses: AsyncIterator[Any]
                async with aclosing(behave(parsed, context)) as responses:
                    async for response in responses:
                        await _write(context, response)

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
        return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)

    async def _enter(self, stack: AsyncExitStack, method: str, streaming: bool, context: Context) -> None:
        call = Call(method, streaming, context, CallFacts(method, _request_id(context), context.peer()))
        context.set_trailing_metadata(call.trailing_metadata)
        stack.enter_context(call_facts.entered(call.facts))
        for around in self._chain:
            await stack.enter_async_context(around(call))


class _ParsedRequests:
    """What the client streams, as messages."""

    def __init__(self, requests: AsyncIterator[bytes], handler: "Handler") -> None:
        self._requests = requests
        self._handler = handler

    def __aiter__(self) -> "_ParsedRequests":
        return self

    async def __anext__(self) -> Any:
        return _parsed(await anext(self._requests), self._handler)


def _parsed(request: bytes, handler: "Handler") -> Any:
    """The message. It is parsed here, within the chain: what gRPC can't parse it would call UNKNOWN, a bug of ours."""
    parse: Any = handler.request_deserializer
    try:
        return parse(request)
    except DecodeError as error:
        raise InvalidFieldError("request", str(error)) from error


async def _write(context: Context, response: Any) -> None:
    try:
        await context.write(response)
    except grpc.aio.InternalError as error:  # nobody is there to take it, which gRPC will report a moment later
        raise asyncio.CancelledError("the client is gone") from error


def _request_id(context: Context) -> str:
    sent = str(dict(context.invocation_metadata() or ()).get(REQUEST_ID_METADATA, ""))
    return sent if REQUEST_ID.fullmatch(sent) else str(uuid.uuid4())
