"""Traces for OpenTelemetry, where the user asks for them: a span for each call, over all its attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace

from reformer_client.errors import ReformerError

if TYPE_CHECKING:
    from reformer_client.calls import Call


class CallTracer:
    """Makes spans; no attribute of them has content."""

    def __init__(self, provider: trace.TracerProvider, server: str) -> None:
        self._tracer = provider.get_tracer("reformer_client")
        self._server = server

    @contextmanager
    def span(self, call: Call, method: str) -> Iterator[None]:
        """Around a call of a method such as `reformer.v1.InferenceService/Generate`; the server learns of it."""
        service, _, name = method.partition("/")
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "server.address": self._server,
            "reformer.request_id": call.request_id,
        }
        if call.document_id is not None:
            attributes["reformer.document_id"] = call.document_id
        span = self._tracer.start_span(method, kind=trace.SpanKind.CLIENT, attributes=attributes)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span))
        call.trace_headers = tuple(headers.items())
        status = 0
        try:
            yield
        except (GeneratorExit, asyncio.CancelledError):  # its user left it
            status = 1
            raise
        except BaseException as error:
            status = error.code.value[0] if isinstance(error, ReformerError) else 2
            span.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            span.set_attribute("rpc.grpc.status_code", status)
            span.end()
