"""The server's own end: told to stop while it is busy, and by the death of its engine."""

import asyncio
import signal
import sys
import time
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.bars import Bar
from benchmarks.serving import ServerProcess
from reformer_client import AsyncClient, RetryPolicy, UnavailableError
from tests.faults import faulty
from tests.faults.campaign import Campaign
from tests.faults.conftest import Start

STREAMS, TOKENS = 8, 200
DOCUMENT = b"x" * 20_000
GRACE_SECONDS = 20.0
ONCE = RetryPolicy(max_attempts=1)
SERVING = health_pb2.HealthCheckResponse.SERVING


async def test_sigterm_under_load(start: Start, campaign: Campaign) -> None:
    """Streams that run and a document that is read are finished; what comes later is sent elsewhere."""
    fault, seconds, exit_codes = "SIGTERM under load", [], []
    times, finished, refused = campaign.times(fault), 0, 0
    for _ in range(times):
        server = start("--drain-grace", f"{GRACE_SECONDS}s")
        async with AsyncClient(server.address, retry=ONCE) as client:
            reading = asyncio.Event()
            upload = asyncio.create_task(_upload(client, reading))
            streams = [client.generate(f"{number}", max_tokens=TOKENS) for number in range(STREAMS)]
            for stream in streams:
                await anext(stream)
            await reading.wait()
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            late = asyncio.create_task(_calls_refused(server))
            for stream in streams:
                finished += len([token async for token in stream]) == TOKENS - 1
            finished += await upload == len(DOCUMENT)
            exit_codes.append(await asyncio.to_thread(server.process.wait, GRACE_SECONDS))
            seconds.append(time.monotonic() - began)
            refused += await late
        assert "Traceback" not in server.log, server.log
    campaign.measured(
        fault,
        Bar("streams and uploads in flight that were finished, a stop", finished / times, least=STREAMS + 1),
        Bar("calls that came later, and got UNAVAILABLE", refused, least=times),
        Bar("highest exit code", max(exit_codes), least=0, most=0),
        Bar("longest time from the signal to the exit, seconds", max(seconds), most=GRACE_SECONDS),
    )


async def _upload(client: AsyncClient, reading: asyncio.Event) -> int:
    document = await client.documents.create(DOCUMENT, on_progress=lambda progress: reading.set())
    return document.tokens


async def _calls_refused(server: ServerProcess) -> int:
    """Calls until the process is gone; from the first one that is refused on, all of them are."""
    refused = 0
    while server.process.poll() is None:
        async with AsyncClient(server.address, retry=ONCE) as client:
            try:
                await client.model(timeout=5)
            except UnavailableError:
                refused += 1
            else:
                assert not refused, "a call was let in after others had been refused"
        await asyncio.sleep(0.02)
    return refused


async def test_engine_dies(start: Start, campaign: Campaign) -> None:
    """Whoever watches the health is told, calls may be made again elsewhere, and the process ends for a supervisor."""
    fault, unhealthy, ended = "engine dies", [], []
    program = [sys.executable, str(Path(faulty.__file__)), "engine"]
    for _ in range(campaign.times(fault)):
        server = start(program=program)
        async with (
            AsyncClient(server.address, retry=ONCE) as client,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert (await health.read()).status == SERVING
            stream = client.generate("x", max_tokens=100_000)
            await anext(stream)
            server.process.send_signal(signal.SIGUSR1)
            began = time.monotonic()
            assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            unhealthy.append(time.monotonic() - began)
            with pytest.raises(UnavailableError) as caught:
                await stream.collect()
            assert caught.value.reason == "ENGINE_STOPPED"
            assert await asyncio.to_thread(server.process.wait, 30) == 1
            ended.append(time.monotonic() - began)
        assert "the device is gone" in server.log
    campaign.measured(
        fault,
        Bar("longest time until the health says NOT_SERVING, seconds", max(unhealthy), most=10),
        Bar("longest time until the process has ended with exit code 1, seconds", max(ended), most=20),
    )
