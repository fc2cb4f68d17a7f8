"""Allocations that fail on a busy server: that call may be made again, the next one succeeds, nothing is lost."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks.bars import Bar
from benchmarks.serving import ServerProcess
from reformer_client import AsyncClient, ResourceExhaustedError, RetryPolicy
from tests.e2e.conftest import until
from tests.faults import faulty
from tests.faults.campaign import Campaign
from tests.faults.conftest import Start
from tests.faults.test_lost_clients import idle

TEXT = "some text " * 20
Call = Callable[[AsyncClient], Awaitable[object]]


async def upload(client: AsyncClient) -> object:
    async with client.documents.create(TEXT) as document:
        return document.tokens


async def score(client: AsyncClient) -> object:
    return (await client.score(TEXT)).logprobs.tolist()[1:]


async def generate(client: AsyncClient) -> object:
    async with client.documents.create("x" * 300) as document:
        return (await document.generate(TEXT, max_tokens=5, seed=1).collect()).ids


BESIDE_A_STREAM: list[tuple[str, Call]] = [
    ("upload", upload),
    ("upload", score),
    ("encode", upload),
    ("encode", generate),
    ("read", upload),
    ("read", score),
    ("extend", generate),
]
"""Where the allocation fails, and in which call."""
ALONE: list[tuple[str, Call]] = [("sample", generate), ("decode", generate)]  # in a batch they would be taken in halves


async def arm(server: ServerProcess, name: str) -> None:
    """The next fault of the program is to happen, which has this name."""
    server.process.send_signal(signal.SIGUSR1)
    assert server.process.stdout is not None
    assert await asyncio.to_thread(server.process.stdout.readline) == f"{name}\n"


async def test_only_that_call_fails(start: Start, campaign: Campaign) -> None:
    fault, failed = "allocations that fail in the server", 0
    times, names = campaign.times(fault), [name for name, _ in (*BESIDE_A_STREAM, *ALONE)]
    server = start(program=[sys.executable, str(Path(faulty.__file__)), ",".join(names * times)])
    async with AsyncClient(server.address, retry=RetryPolicy(max_attempts=1)) as client:
        expected = {call: await call(client) for call in (upload, score, generate)}

        async def fail(name: str, call: Call) -> int:
            await arm(server, name)
            with pytest.raises(ResourceExhaustedError) as caught:
                await call(client)
            assert caught.value.reason == "OUT_OF_MEMORY"
            assert caught.value.retry_after_seconds
            assert await call(client) == expected[call]
            return 1

        for _ in range(times):
            async with client.generate("another one's stream", max_tokens=100_000) as stream:
                for name, call in BESIDE_A_STREAM:
                    await anext(stream)
                    failed += await fail(name, call)
                await anext(stream)
            await asyncio.to_thread(until, lambda: idle(server))
            for name, call in ALONE:
                failed += await fail(name, call)
    assert idle(server)
    assert "Traceback" not in server.log, server.log
    campaign.measured(
        fault, Bar("calls that failed, each followed by one that succeeded", failed, least=len(names) * times)
    )


async def test_a_document_comes_back_all_the_same(start: Start, campaign: Campaign, tmp_path: Path) -> None:
    """A restore that fails takes nothing out of the store, and the next one of the same document succeeds."""
    fault, failed = "allocations that fail in a restore", 0
    times = campaign.times(fault)
    async with AsyncClient((first := start("--store", tmp_path)).address) as client:
        documents = [await client.documents.create(f"{TEXT}{number}") for number in range(times)]
        expected = [await document.generate(max_tokens=5, seed=1).collect() for document in documents]
    await asyncio.to_thread(first.stop)
    program = [sys.executable, str(Path(faulty.__file__)), ",".join(["restore"] * times)]
    server = start("--store", tmp_path, program=program)
    async with AsyncClient(server.address, retry=RetryPolicy(max_attempts=1)) as client:
        for document, whole in zip(documents, expected, strict=True):
            restored = await client.documents.get(document.id)
            await arm(server, "restore")
            with pytest.raises(ResourceExhaustedError):
                await restored.generate(max_tokens=5, seed=1).collect()
            failed += 1
            assert (await restored.generate(max_tokens=5, seed=1).collect()).ids == whole.ids
            await restored.delete()
    assert idle(server)
    assert "Traceback" not in server.log, server.log
    campaign.measured(fault, Bar("restores that failed, each followed by one that succeeded", failed, least=times))
