"""The server's metrics, in a registry of their own, and the HTTP port that shows them.

Base units; labels are few and bounded: never a document's id, never a tenant.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client import start_http_server as start_prometheus_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from reformer_core.events import Event, Finished, Started
from reformer_server.call_facts import Reading
from reformer_server.status import REASONS

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

# Else each series has a second one, with the time of its creation, that nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

T = TypeVar("T", Counter, Histogram)

SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LONG_SECONDS = (
    0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560
)  # fmt: skip


class Metrics:
    """All series that are counted as things happen; what can be looked up is collected by `watch`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, help: str, **labels: tuple[str, ...]) -> Counter:
            return shown(Counter(f"reformer_{name}", help, list(labels), registry=registry), labels)

        def histogram(name: str, help: str, buckets: tuple[float, ...], **labels: tuple[str, ...]) -> Histogram:
            metric = Histogram(f"reformer_{name}", help, list(labels), registry=registry, buckets=buckets)
            return shown(metric, labels)

        def shown(metric: T, labels: Mapping[str, tuple[str, ...]]) -> T:
            """Shows every series whose label's values are known beforehand from the beginning, as 0."""
            for values in product(*labels.values()) if labels else ():
                metric.labels(*values)
            return metric

        self.requests = counter("requests_total", "Calls that ended, by their status code.", method=(), code=())
        self.request_duration = histogram(
            "request_duration_seconds", "From a call's arrival to its end.", LONG_SECONDS, method=()
        )
        self.request_errors = counter(
            "request_errors_total",
            "Calls that the server ended with an error, by its reason; those that their clients left have none.",
            reason=REASONS,
        )
        self.queue = histogram("queue_seconds", "Waiting for a place in the engine.", LONG_SECONDS)
        self.prefill = histogram("prefill_seconds", "Reading a document or a prompt.", LONG_SECONDS)
        self.restore = histogram("restore_seconds", "Taking a document back from the store.", LONG_SECONDS)
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds",
            "From a Generate call's arrival to its first token; hit, restored: it named a document.",
            LONG_SECONDS,
            cache=("hit", "miss", "restored"),
        )
        self.time_per_output_token = histogram(
            "time_per_output_token_seconds", "Mean time of a generation's tokens but the first.", SHORT_SECONDS
        )
        self.prefill_tokens = counter(
            "prefill_tokens_total",
            "Tokens that were read, or didn't have to be.",
            source=("computed", "cached", "restored"),
        )
        self.generated_tokens = counter("generated_tokens_total", "Tokens that were generated.")
        self.scored_tokens = counter("scored_tokens_total", "Tokens that were scored.")
        self.lookups = counter(
            "document_cache_lookups_total",
            "Documents asked for by id or by content.",
            result=("hit", "miss", "restored"),
        )
        self.evictions = counter(
            "document_cache_evictions_total",
            "Documents that were dropped; memory: from memory only, to make room.",
            reason=("expired", "deleted", "memory"),
        )
        self.documents_lost = counter(
            "documents_lost_total",
            "Documents to be uploaded again; damaged: what the store had isn't whole, not_written: it never got them.",
            reason=("damaged", "not_written"),
        )
        self.store_errors = counter("document_store_errors_total", "Calls of the document store that failed.")
        self.serving = Gauge(
            "reformer_serving", "1: warmed up and taking calls, as the health service says.", registry=registry
        )
        self._cancelled = counter(
            "cancelled_total", "Requests that were cancelled.", phase=("waiting", "prefill", "decode")
        )
        self._cancel_latency = histogram(
            "cancel_latency_seconds", "Until the engine has stopped working on a cancelled request.", SHORT_SECONDS
        )

    def cancelled(self, phase: str, latency_seconds: float) -> None:
        """A request in `phase` was cancelled; it took `latency_seconds` from the wish to the deed."""
        self._cancelled.labels(phase).inc()
        self._cancel_latency.observe(latency_seconds)

    def saw(self, event: Event, reading: Reading) -> None:
        """Times that events carry, whatever the request."""
        if isinstance(event, Started):
            self.queue.observe(event.queued_seconds)
        elif isinstance(event, Finished):
            histogram = self.restore if reading == "restore" else self.prefill
            histogram.observe(event.timings.prefill_seconds)

    def watch(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Registers gauges that are looked up whenever somebody reads the metrics."""
        self.registry.register(_Watched(collect))

    def build_info(self, **labels: str) -> None:
        """Says what is running."""
        Info("reformer_build", "What is running.", registry=self.registry).info(labels)


class _Watched(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def describe(self) -> Iterable[Metric]:
        return ()  # else registering would collect once, perhaps before there is anything to look up

    def collect(self) -> Iterable[Metric]:
        return self._collect()


class MetricsPort:
    """The HTTP port of a registry, served by a thread of its own; it also answers probes that speak no gRPC."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, probes: Mapping[str, Callable[[], bool]]
    ) -> None:
        """Starts to listen; raises OSError if it can't. Port 0 picks a free one. `probes` go by their paths."""
        self._server, self._thread = start_prometheus_server(port, host, registry)
        metrics = self._server.get_app()
        assert metrics is not None

        def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            probe = probes.get(environ["PATH_INFO"])
            if probe is None:
                return metrics(environ, start_response)
            good = probe()
            start_response("200 OK" if good else "503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"yes\n" if good else b"no\n"]

        self._server.set_app(app)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    async def stop(self) -> None:
        """Stops listening."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()
