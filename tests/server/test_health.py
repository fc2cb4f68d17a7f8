"""grpc.health.v1: alive, ready, and what tells them apart."""

import asyncio
import logging
import threading
import urllib.error
import urllib.request

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reformer.v1 import inference_pb2 as pb
from reformer_server import ServedModel, Server, Settings
from reformer_server.errors import EngineStoppedError
from reformer_server.health import LIVENESS, READINESS
from reformer_server.server import SERVICES
from tests.server.conftest import Running, running_server
from tests.server.fake_engine import FakeEngine

ALIVE_AND_READY = {LIVENESS: "SERVING", READINESS: "SERVING"}
ONLY_ALIVE = {LIVENESS: "SERVING", READINESS: "NOT_SERVING"}
NEITHER = {LIVENESS: "NOT_SERVING", READINESS: "NOT_SERVING"}


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_server.health.CHECK_SECONDS", 0.01)


async def status(channel: grpc.aio.Channel, service: str) -> str:
    request = health_pb2.HealthCheckRequest(service=service)
    response = await health_pb2_grpc.HealthStub(channel).Check(request)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


async def statuses(channel: grpc.aio.Channel) -> dict[str, str]:
    ready = {await status(channel, name) for name in ("", READINESS, *SERVICES)}
    assert len(ready) == 1, "readiness, all services and the server as a whole say the same"
    return {LIVENESS: await status(channel, LIVENESS), READINESS: ready.pop()}


async def until(channel: grpc.aio.Channel, expected: dict[str, str]) -> None:
    async with asyncio.timeout(5):
        while {name: await status(channel, name) for name in expected} != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert await statuses(channel) == expected


async def test_alive_and_ready(running: Running) -> None:
    assert await statuses(running.channel) == ALIVE_AND_READY


async def test_the_engine_turns_even_if_nobody_asks_anything(running: Running) -> None:
    """By which a Prometheus tells one that hangs from one that is idle."""
    before = running.server.engine.turns
    async with asyncio.timeout(5):
        while running.server.engine.turns < before + 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_name_that_is_no_service(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await status(running.channel, "reformer.v1.NoService")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_alive_but_not_ready_while_it_warms_up(served_model: ServedModel) -> None:
    engine = FakeEngine(step_seconds=0.2)
    server = Server(Settings(port=0, metrics_port=0, store="none"), served_model, lambda: engine)  # type: ignore[arg-type, return-value]
    starting = asyncio.create_task(server.start())
    try:
        while not server.port:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert await statuses(channel) == ONLY_ALIVE
            engine.step_seconds = 0
            await starting
            assert await statuses(channel) == ALIVE_AND_READY
    finally:
        await server.stop()


async def test_alive_but_not_ready_while_it_drains(served_model: ServedModel) -> None:
    async with running_server(served_model, FakeEngine(step_seconds=0.005)) as running:
        call = running.inference.Generate(pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=50)))
        await call.read()
        stopping = asyncio.create_task(running.server.stop())
        await until(running.channel, ONLY_ALIVE)
        await asyncio.sleep(0.05)  # in which it looks some times, and finds nothing wrong
        assert not stopping.done()
        assert await statuses(running.channel) == ONLY_ALIVE
        await stopping


async def test_a_forward_pass_that_fails(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As without memory for it: no request kills the engine, and none would succeed."""

    def fails(token_ids: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(running.server.model.model, "forward", fails)
        await until(running.channel, ONLY_ALIVE)
    await until(running.channel, ALIVE_AND_READY)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]  # once, not at each look
    assert "NOT ready" in record.message
    assert record.exc_info is not None


async def test_a_device_that_is_lost_while_nobody_calls(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ready, it would get no call that finds out: so looking is what ends the process, to be started anew."""

    def fails(token_ids: torch.Tensor) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(running.server.model.model, "forward", fails)
    await until(running.channel, NEITHER)
    with pytest.raises(EngineStoppedError):
        await running.server.until_stopped()


async def test_a_forward_pass_that_gives_nonsense(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(running.server.model.model, "forward", lambda token_ids: torch.full((1, 258), torch.nan))
        await until(running.channel, ONLY_ALIVE)
    await until(running.channel, ALIVE_AND_READY)
    assert ["aren't finite" in record.message for record in caplog.records] == [True]


def asked(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_the_metrics_port_says_the_same(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """For probes that speak no gRPC, or no TLS."""
    url = f"http://127.0.0.1:{running.server.metrics_port}"
    assert await asyncio.to_thread(asked, f"{url}/livez") == (200, "yes\n")
    assert await asyncio.to_thread(asked, f"{url}/readyz") == (200, "yes\n")
    monkeypatch.setattr(running.server.model.model, "forward", lambda token_ids: torch.full((1, 258), torch.nan))
    await until(running.channel, ONLY_ALIVE)
    assert await asyncio.to_thread(asked, f"{url}/livez") == (200, "yes\n")
    assert await asyncio.to_thread(asked, f"{url}/readyz") == (503, "no\n")
    status, text = await asyncio.to_thread(asked, f"{url}/metrics")
    assert status == 200
    assert "reformer_requests_running 0.0" in text


async def test_an_engine_that_is_stuck(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a device that never answers. Should it answer after all, everything is well again."""
    monkeypatch.setattr("reformer_server.health.STUCK_SECONDS", 0.1)
    answers = threading.Event()
    running.server.engine.post(lambda engine: answers.wait())
    try:
        await until(running.channel, NEITHER)
        assert "NOT alive" in caplog.text
    finally:
        answers.set()
    await until(running.channel, ALIVE_AND_READY)


async def test_an_engine_that_died(running: Running) -> None:
    running.engine.fault = RuntimeError("the device is gone")
    running.server.engine.wake()
    await until(running.channel, NEITHER)
