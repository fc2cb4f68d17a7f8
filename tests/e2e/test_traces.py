"""`reformer serve --traces`: spans reach a collector, and one that isn't there holds nobody up."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from benchmarks.serving import ServerProcess
from reformer_client import Client

STOPPED_SECONDS = 8.0


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.arrived = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 -- the contract's name
        self.received += request.resource_spans
        self.arrived.set()
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None)


def test_what_was_not_sent_yet_is_sent_at_the_end(
    serve: Callable[..., ServerProcess], collector: tuple[Collector, str]
) -> None:
    traces, url = collector
    server = serve("--memory", "1GiB", "--traces", url)
    with Client(server.address) as client:
        client.generate("x", max_tokens=5).collect()
    assert server.stop() == 0
    assert traces.arrived.wait(5)
    [resource] = traces.received
    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert attributes["service.name"] == "reformer-serve"
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert names == {"reformer.v1.InferenceService/Generate", "queue", "prefill", "decode"}


def test_a_collector_that_isnt_there_holds_nobody_up(serve: Callable[..., ServerProcess]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server = serve("--memory", "1GiB", "--traces", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with Client(server.address, timeout=10) as client:
            client.generate("x", max_tokens=5).collect()
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < STOPPED_SECONDS
