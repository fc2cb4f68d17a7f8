"""Clients that are gone without a word: the server stops their work, and has its memory back."""

import asyncio
import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from benchmarks.bars import Bar
from benchmarks.serving import ServerProcess
from reformer.v1 import document_pb2_grpc
from reformer_client import AsyncClient, Client, Keepalive, UnavailableError
from tests.e2e.conftest import until
from tests.faults import clients
from tests.faults.campaign import Campaign
from tests.faults.conftest import Start
from tests.faults.proxy import proxying

RUNNING = "reformer_requests_running"


@contextmanager
def client_process(kind: str, address: str, document_id: str) -> Iterator[subprocess.Popen[str]]:
    """A client that has got to where it is to be killed."""
    command = [sys.executable, str(Path(clients.__file__)), kind, address, document_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the client ended by itself"
            yield process
        finally:
            process.kill()


def idle(server: ServerProcess) -> bool:
    """Whether nothing is worked on, and no page held."""
    with Client(server.address) as client:
        load = client.load()
    return (load.running_requests, load.waiting_requests, load.used_page_bytes) == (0, 0, 0)


@pytest.mark.parametrize(("kind", "does"), [("reading", "reads"), ("generating", "generates")])
def test_killed_while_the_server_works(server: ServerProcess, campaign: Campaign, kind: str, does: str) -> None:
    fault, randomness, seconds = f"clients killed while the server {does}", random.Random(5), []
    for number in range(campaign.times(fault)):
        with client_process(kind, server.address, f"{kind}-{number}") as process:
            time.sleep(randomness.uniform(0, 0.1))
            assert server.metric(RUNNING) == 1
            process.kill()
            began = time.monotonic()
            until(lambda: idle(server))
            seconds.append(time.monotonic() - began)
    campaign.measured(
        fault, Bar("longest time until nothing runs and all pages are free, seconds", max(seconds), most=2)
    )


def test_killed_while_uploading(server: ServerProcess, campaign: Campaign) -> None:
    """What was sent is kept, and another client goes on from there."""
    fault, resumed = "clients killed while uploading", 0
    for number in range(campaign.times(fault)):
        document_id, before = f"uploading-{number}", cancelled_uploads(server)
        with client_process("uploading", server.address, document_id) as process:
            process.kill()
            until(lambda before=before: cancelled_uploads(server) == before + 1)
        assert idle(server)
        resumed += resume_offset(server.address, document_id) == clients.SENT_BYTES
        content = clients.content(document_id)
        with Client(server.address) as client, client.documents.create(content, document_id=document_id) as document:
            assert document.info.sha256 == hashlib.sha256(content).digest()
    campaign.measured(fault, Bar("uploads of which nothing has to be sent twice", resumed, least=campaign.times(fault)))


def cancelled_uploads(server: ServerProcess) -> float:
    return server.metric("reformer_requests_total", code="CANCELLED", method="DocumentService/CreateDocument")


def resume_offset(address: str, document_id: str) -> int:
    """Where the server wants the upload to go on."""
    with grpc.insecure_channel(address) as channel:
        call = document_pb2_grpc.DocumentServiceStub(channel).CreateDocument(iter([clients.header(document_id)]))
        return next(call).accepted.resume_offset


async def test_half_open_connection(start: Start, campaign: Campaign) -> None:
    """Nobody answers, and nobody hangs up: the server finds out by asking, and cancels the connection's calls."""
    keepalive_seconds = 30.0 if campaign.full else 1.5
    server, fault = start("--keepalive", f"{keepalive_seconds}s"), "connections half open"
    connections = campaign.times(fault)
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(proxying(server.port)) for _ in range(connections)]
        for proxy in proxies:
            client = await stack.enter_async_context(AsyncClient(proxy.address))
            stream = client.generate("x", max_tokens=100_000)
            await anext(stream)
            stack.push_async_callback(stream.aclose)
        assert server.metric(RUNNING) == connections
        for proxy in proxies:
            proxy.stall()
        began = time.monotonic()
        await asyncio.to_thread(until, lambda: idle(server), 60)
        seconds = time.monotonic() - began
    assert server.process.poll() is None
    assert "Traceback" not in server.log
    allowed = keepalive_seconds * 4 / 3 + 1
    campaign.measured(fault, Bar("time until all work has ended, seconds", seconds, most=allowed))


async def test_half_open_connection_to_the_server(server: ServerProcess) -> None:
    """The other way round: a client finds out that its server has vanished, as soon as its Keepalive says."""
    keepalive = Keepalive(time_seconds=1, timeout_seconds=0.5)
    async with proxying(server.port) as proxy, AsyncClient(proxy.address, keepalive=keepalive) as client:
        stream = client.generate("x", max_tokens=100_000)
        await anext(stream)
        proxy.stall()
        async with asyncio.timeout(5):
            with pytest.raises(UnavailableError):
                await stream.collect()
    await asyncio.to_thread(until, lambda: idle(server))
