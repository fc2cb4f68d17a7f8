"""Start, health, request ids, draining, and an engine that dies."""

import asyncio
import logging
import socket
import urllib.request

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from reformer.v1 import document_pb2, model_pb2
from reformer.v1 import inference_pb2 as pb
from reformer_server import ServedModel, Server, Settings
from reformer_server.server import SERVICES
from tests.server.conftest import Running, running_server
from tests.server.fake_engine import FakeEngine
from tests.server.statuses import refused
from tests.server.uploading import create_document, header

ENDLESS = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=10**6))
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(running: Running, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(running.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_health_and_reflection_know_every_service(running: Running) -> None:
    assert len(SERVICES) == 4
    for service in ("", *SERVICES):
        assert await health(running, service) == SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)

    async def ask():
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    [response] = [response async for response in stub.ServerReflectionInfo(ask())]
    assert {service.name for service in response.list_services_response.service} >= set(SERVICES)


async def test_not_serving_until_warmed_up(served_model: ServedModel) -> None:
    engine = FakeEngine(step_seconds=0.2)
    server = Server(Settings(port=0, metrics_port=0), served_model, lambda: engine)
    starting = asyncio.create_task(server.start())
    try:
        while not server.port:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            running = Running(server, engine, channel)
            assert await health(running) == NOT_SERVING
            engine.step_seconds = 0
            await starting
            assert await health(running) == SERVING
    finally:
        await server.stop()


async def test_request_id_comes_back(running: Running) -> None:
    call = running.model.GetLoad(model_pb2.GetLoadRequest(), metadata=(("x-request-id", "mine-1"),))
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"
    call = running.model.GetLoad(model_pb2.GetLoadRequest(), metadata=(("x-request-id", "x" * 500),))
    assert len(dict(await call.trailing_metadata())["x-request-id"]) == 36
    with refused(grpc.StatusCode.NOT_FOUND) as refusal:
        request = document_pb2.GetDocumentRequest(document_id="a")
        await running.documents.GetDocument(request, metadata=(("x-request-id", "mine-2"),))
    assert refusal.trailing["x-request-id"] == "mine-2"


async def test_a_bug_is_logged_and_hidden(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.engine.request_fault = KeyError("secret")
    with refused(grpc.StatusCode.INTERNAL) as refusal:
        async for _ in running.inference.Generate(pb.GenerateRequest(text="x"), metadata=(("x-request-id", "r-7"),)):
            pass
    assert "r-7" in refusal.message
    assert "secret" not in refusal.message
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "r-7" in record.message
    assert record.exc_info is not None


async def test_queue_full(running: Running) -> None:
    running.engine.max_waiting = 0
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
        async for _ in running.inference.Generate(ENDLESS):
            pass
    assert refusal.reason == "QUEUE_FULL"
    assert refusal.has(error_details_pb2.RetryInfo)


async def test_drain_finishes_what_runs_and_takes_nothing_new(served_model: ServedModel) -> None:
    async with running_server(served_model, FakeEngine(step_seconds=0.005)) as running:
        call = running.inference.Generate(pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=100)))
        await call.read()
        stopping = asyncio.create_task(running.server.stop())
        while not (await running.model.GetLoad(model_pb2.GetLoadRequest())).draining:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert await health(running) == NOT_SERVING
        with refused(grpc.StatusCode.UNAVAILABLE) as refusal:
            await running.documents.ListDocuments(document_pb2.ListDocumentsRequest())
        assert refusal.reason == "DRAINING"
        assert refusal.has(error_details_pb2.RetryInfo)
        while (response := await call.read()) is not grpc.aio.EOF:
            last = response
        assert last.finished.usage.output_tokens == 100
        await stopping


async def test_grace_period_ends(served_model: ServedModel) -> None:
    async with running_server(served_model, FakeEngine(step_seconds=0.001), drain_grace_seconds=0.1) as running:
        generation = running.inference.Generate(ENDLESS)
        await generation.read()
        upload = running.documents.CreateDocument()
        await upload.write(header(b"abc"))
        await upload.read()
        await asyncio.wait_for(running.server.stop(), timeout=3)
        with refused(grpc.StatusCode.UNAVAILABLE) as refusal:
            while await generation.read() is not grpc.aio.EOF:
                pass
        assert refusal.reason == "DRAINING"
        with pytest.raises(grpc.aio.AioRpcError):
            await upload.read()


async def test_second_signal_ends_the_grace_period(served_model: ServedModel) -> None:
    async with running_server(served_model, FakeEngine(step_seconds=0.001), drain_grace_seconds=60) as running:
        generation = running.inference.Generate(ENDLESS)
        await generation.read()
        running.server.tell_to_stop()
        await asyncio.wait_for(running.server.until_stopped(), timeout=1)
        stopping = asyncio.create_task(running.server.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        running.server.tell_to_stop()
        await asyncio.wait_for(stopping, timeout=3)


async def test_engine_death_ends_everything(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    document = await create_document(running, b"some text")
    running.engine.step_seconds = 0.001
    generation = running.inference.Generate(ENDLESS)
    await generation.read()
    running.engine.fault = RuntimeError("the device is gone")
    with refused(grpc.StatusCode.UNAVAILABLE) as refusal:
        while await generation.read() is not grpc.aio.EOF:
            pass
    assert refusal.reason == "ENGINE_STOPPED"
    with refused(grpc.StatusCode.UNAVAILABLE):
        async for _ in running.inference.Generate(pb.GenerateRequest(document_id=document.document_id)):
            pass
    with refused(grpc.StatusCode.UNAVAILABLE):
        await create_document(running, b"other")
    with pytest.raises(Exception, match="engine has stopped"):
        await running.server.until_stopped()
    assert any("the engine died" in record.message for record in caplog.records)


async def test_engine_that_cannot_be_built(served_model: ServedModel, caplog: pytest.LogCaptureFixture) -> None:
    def build() -> FakeEngine:
        raise OSError("no such device")

    server = Server(Settings(port=0, metrics_port=0), served_model, build)
    with pytest.raises(OSError, match="no such device"):
        await server.start()
    await server.stop()
    assert not caplog.records  # who called start() tells it


async def test_port_that_is_taken(served_model: ServedModel) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for settings in (Settings(port=port, metrics_port=0), Settings(port=0, metrics_port=port)):
            server = Server(settings, served_model, FakeEngine)
            with pytest.raises(OSError, match=r"listens there|in use"):
                await server.start()
            await server.stop()


async def test_metrics_over_http(running: Running) -> None:
    await create_document(running, b"some text", document_id="private-name")
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    for series in (
        'reformer_requests_total{code="OK",method="DocumentService/CreateDocument"} 1.0',
        "reformer_requests_running 0.0",
        "reformer_requests_waiting 0.0",
        'reformer_request_duration_seconds_count{method="DocumentService/CreateDocument"} 1.0',
        'reformer_prefill_tokens_total{source="computed"} 9.0',
        'reformer_document_cache_documents{tier="memory"} 1.0',
        'reformer_document_cache_capacity_bytes{tier="memory"} 100000.0',
        'reformer_memory_bytes{device="cpu",kind="weights"} 1000.0',
        'reformer_memory_bytes{device="cpu",kind="other"}',
        "reformer_decode_batch_size 0.0",
        "reformer_cancel_latency_seconds_count 0.0",
        "reformer_queue_seconds_count",
        "reformer_prefill_seconds_count",
        "reformer_build_info{",
        "process_resident_memory_bytes",
    ):
        assert series in text, series
    assert "private-name" not in text
