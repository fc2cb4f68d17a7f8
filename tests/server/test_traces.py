"""Traces from the client's span to the engine's phases, over a real server and client, and nothing of them unasked."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from reformer_client import AsyncClient, Client
from reformer_client.errors import NotFoundError
from reformer_server import ServedModel, Settings, SettingsError
from reformer_server.building import open_traces
from reformer_server.tracing import tracing
from tests.server.conftest import Running, running_server
from tests.server.tenants_files import ONCE
from tests.server.test_real_engine import TEXT, make_engine

SECRET = "Rumpelstilzchen"


@dataclass
class Traced:
    """A server and a client whose spans are kept."""

    running: Running
    client: AsyncClient
    provider: TracerProvider
    exporter: InMemorySpanExporter

    async def spans(self, number: int) -> list[ReadableSpan]:
        """All since the last time, oldest first: the server's end a moment after its client's."""
        await self.running.until(lambda: len(self.exporter.get_finished_spans()) >= number)
        spans = sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        self.exporter.clear()
        assert len(spans) == number, [span.name for span in spans]
        return spans


@pytest.fixture
async def traced(served_model: ServedModel, tmp_path: Path) -> AsyncIterator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine, links = make_engine(served_model, documents=1.5), (tracing(provider),)
    async with running_server(served_model, engine, links, store=str(tmp_path / "store")) as running:
        address = f"127.0.0.1:{running.server.port}"
        async with AsyncClient(address, retry=ONCE, timeout=20, tracer_provider=provider) as client:
            yield Traced(running, client, provider, exporter)


def tree(spans: list[ReadableSpan]) -> list[tuple[str, str | None]]:
    """Each span's name and its parent's."""
    names = {span.context.span_id: span.name for span in spans}
    return [(span.name, names[span.parent.span_id] if span.parent else None) for span in spans]


async def test_a_call_from_the_client_to_the_engine(traced: Traced) -> None:
    create, generate = "reformer.v1.DocumentService/CreateDocument", "reformer.v1.InferenceService/Generate"
    document = await traced.client.documents.create(SECRET.encode() + TEXT[:3000], document_id="a")
    spans = await traced.spans(4)
    assert tree(spans) == [(create, None), (create, create), ("queue", create), ("prefill", create)]
    assert [span.kind.name for span in spans[:2]] == ["CLIENT", "SERVER"]
    assert len({span.context.trace_id for span in spans}) == 1
    await document.generate(SECRET, max_tokens=20, seed=1).collect()
    generation = await traced.spans(5)
    assert tree(generation) == [
        (generate, None),
        (generate, generate),
        *((phase, generate) for phase in ("queue", "prefill", "decode")),
    ]
    client, server, *phases = generation
    assert client.attributes is not None
    assert server.attributes is not None
    assert client.attributes["reformer.request_id"] == server.attributes["reformer.request_id"]
    assert server.attributes["reformer.document_id"] == "a"
    assert server.attributes["reformer.generated_tokens"] == 20
    assert server.attributes["rpc.grpc.status_code"] == client.attributes["rpc.grpc.status_code"] == 0
    for phase, after in pairwise(phases):
        assert phase.end_time is not None
        assert after.start_time is not None
        assert server.start_time <= phase.start_time <= phase.end_time <= after.start_time + 1_000  # type: ignore[operator]
    assert SECRET not in "".join(span.to_json() for span in spans + generation)


async def test_a_restored_document(traced: Traced) -> None:
    document = await traced.client.documents.create(TEXT, document_id="a")
    await traced.running.until(lambda: not len(traced.running.server.write_behind or ()))
    await traced.client.documents.create(TEXT[::-1], document_id="b")
    await traced.spans(8)
    await document.generate("x", max_tokens=3).collect()
    names = [span.name for span in await traced.spans(7)]
    assert names[2:] == ["queue", "restore", "queue", "prefill", "decode"]


async def test_errors_and_calls_that_are_left(traced: Traced) -> None:
    with pytest.raises(NotFoundError):
        await traced.client.documents.get("nowhere")
    client, server = await traced.spans(2)
    assert client.attributes is not None
    assert server.attributes is not None
    assert client.attributes["rpc.grpc.status_code"] == server.attributes["rpc.grpc.status_code"] == 5
    assert client.status.status_code == trace.StatusCode.ERROR
    assert server.status.status_code == trace.StatusCode.UNSET  # the client's error, not the server's
    assert server.attributes["reformer.reason"] == "DOCUMENT_NOT_FOUND"
    async with traced.client.generate("x", max_tokens=4000, seed=1) as stream:
        await anext(stream)
    spans = await traced.spans(5)
    assert {span.attributes["rpc.grpc.status_code"] for span in spans[:2] if span.attributes} == {1}
    assert [span.name for span in spans[2:]] == ["queue", "prefill", "decode"]


async def test_calls_are_below_the_programs_own_span(traced: Traced) -> None:
    tracer = traced.provider.get_tracer("program")
    address = f"127.0.0.1:{traced.running.server.port}"

    def program() -> None:
        with Client(address, tracer_provider=traced.provider) as client, tracer.start_as_current_span("program"):
            client.load()

    await asyncio.to_thread(program)
    load = "reformer.v1.ModelService/GetLoad"
    assert tree(await traced.spans(3)) == [("program", None), (load, "program"), (load, load)]


def test_nothing_is_imported_unasked() -> None:
    program = (
        "import json, sys, reformer_client, reformer_server.cli\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry')]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert json.loads(ended.stdout) == []


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_traces(Settings()) is None
    monkeypatch.setitem(sys.modules, "reformer_server.tracing", None)
    with pytest.raises(SettingsError, match=r"traces: .* isn't installed; pip install 'reformer-serve\[telemetry\]'"):
        open_traces(Settings(traces="http://localhost:4317"))
