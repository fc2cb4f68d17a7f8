"""Traces for OpenTelemetry, an extra: a span for each call, below its client's, and in it one for each of its phases.

No attribute has content.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from reformer_server.call_facts import CallFacts
from reformer_server.calls import Around, Call
from reformer_server.version import VERSION

PACKAGE = "reformer.v1"
EXPORT_SECONDS = 2.0
"""For one export; a collector that doesn't answer delays the server's end by so much."""
SERVERS_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Codes that OpenTelemetry calls a server's errors; the others are its client's."""


class Traces:
    """Sends spans to an OTLP collector (gRPC), in the background; OTEL_… environment variables say the rest."""

    def __init__(self, endpoint: str) -> None:
        attributes = {SERVICE_VERSION: VERSION}
        if "OTEL_SERVICE_NAME" not in os.environ:
            attributes[SERVICE_NAME] = "reformer-serve"
        self._provider = TracerProvider(resource=Resource.create(attributes))
        timeout = None if "OTEL_EXPORTER_OTLP_TIMEOUT" in os.environ else EXPORT_SECONDS
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=timeout)))
        self.link = tracing(self._provider)
        """For the chain around each call."""

    def close(self) -> None:
        """Sends what it still has; blocks for a while if the collector doesn't answer."""
        self._provider.shutdown()


def tracing(provider: trace.TracerProvider) -> Around:
    """A link for the chain around each call, outside of those that learn how it ended."""
    tracer = provider.get_tracer("reformer_server", VERSION)

    @asynccontextmanager
    async def around(call: Call) -> AsyncIterator[None]:
        facts = call.facts
        parent = propagate.extract({key: str(value) for key, value in call.context.invocation_metadata() or ()})
        span = tracer.start_span(
            f"{PACKAGE}.{facts.method}", parent, trace.SpanKind.SERVER, start_time=_nanoseconds(facts.arrived)
        )
        if span.is_recording():
            facts.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        try:
            yield
        finally:
            for phase in facts.phases:
                within = trace.set_span_in_context(span)
                child = tracer.start_span(phase.name, within, start_time=_nanoseconds(phase.begin))
                child.end(_nanoseconds(phase.end))
            span.set_attributes(_attributes(facts))
            if facts.code is not None and facts.code.name in SERVERS_FAULTS:
                span.set_status(trace.StatusCode.ERROR)
            span.end()

    return around


def _attributes(facts: CallFacts) -> dict[str, str | int]:
    service, _, method = facts.method.partition("/")
    ours: dict[str, str | int | None] = {
        "reason": facts.reason,
        "request_id": facts.request_id,
        "tenant": facts.tenant,
        "document_id": facts.document_id,
        "cached_tokens": facts.cached_tokens or None,
        "prompt_tokens": facts.prompt_tokens or None,
        "generated_tokens": facts.generated_tokens or None,
        "scored_tokens": facts.scored_tokens or None,
    }
    attributes: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": f"{PACKAGE}.{service}",
        "rpc.method": method,
        "network.peer.address": facts.peer,
    }
    if facts.code is not None:
        attributes["rpc.grpc.status_code"] = facts.code.value[0]
    return attributes | {f"reformer.{name}": value for name, value in ours.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
