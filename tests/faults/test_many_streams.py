"""Streams by the thousand that are cancelled, and readers by the hundred that stop to read: nothing piles up."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio

from benchmarks.bars import Bar
from benchmarks.listener import listening
from benchmarks.serving import ServerProcess, quantile
from reformer.v1 import document_pb2, document_pb2_grpc, inference_pb2_grpc
from reformer.v1 import inference_pb2 as pb
from reformer_client import AsyncClient
from tests.e2e.conftest import until
from tests.faults.campaign import Campaign
from tests.faults.test_lost_clients import idle

MIB = 1 << 20
TOGETHER = 16  # streams at a time
RSS, FILES = "process_resident_memory_bytes", "process_open_fds"


async def test_cancelled_streams(server: ServerProcess, campaign: Campaign) -> None:
    """Generations and scores: left when the server has begun to answer, or at any moment before."""
    fault, randomness = "streams cancelled", random.Random(5)
    times = campaign.times(fault)
    async with AsyncClient(server.address) as client, client.documents.create(b"x" * 3000) as document:

        async def generate(begun: asyncio.Event) -> None:
            async for _ in document.generate("y", max_tokens=10_000):
                begun.set()

        async def score(begun: asyncio.Event) -> None:
            await client.score(b"z" * 20_000, on_progress=lambda progress: begun.set())

        async def cancel_some(count: int) -> None:
            for _ in range(count):
                begun = asyncio.Event()
                task = asyncio.create_task(generate(begun) if randomness.random() < 0.9 else score(begun))
                if randomness.random() < 0.7:
                    await begun.wait()
                else:
                    await asyncio.sleep(randomness.uniform(0, 0.05))
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()

        async def cancelled(count: int) -> dict[str, float]:
            """The server's metrics after so many more."""
            await asyncio.gather(*(cancel_some(-(-count // TOGETHER)) for _ in range(TOGETHER)))
            await asyncio.to_thread(until, lambda: server.metric("reformer_requests_running") == 0)
            return server.metrics()

        # In a campaign the heap has its working size after 3000: from there to 13,900 it stayed within 7 MiB.
        before, after = await cancelled(3 * times // 10), await cancelled(times)
    assert idle(server)
    assert after[FILES] <= before[FILES] + 5  # a connection may be about to be closed
    stopped = sum(after[name] - before[name] for name in after if name.startswith("reformer_cancelled_total"))
    campaign.measured(
        fault,
        Bar("requests that the engine was working on", stopped, least=times / 2),
        Bar("growth of the server's memory, MiB", (after[RSS] - before[RSS]) / MIB, most=20),
    )


SMALL_WINDOW = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
    ("grpc.http2.bdp_probe", 0),  # gRPC's own clients take 4 MiB before they stop a server that they don't listen to
    ("grpc.http2.lookahead_bytes", 4096),
)
SCORED_TOKENS = 70_000  # several messages


@asynccontextmanager
async def stalled_readers(address: str, count: int, document_id: str) -> AsyncIterator[None]:
    """Readers that take one message and then no further one: of generations, and of a document's scores."""
    generate = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=20_000, top_logprobs=20))
    read_scores = document_pb2.ReadDocumentScoresRequest(document_id=document_id)
    async with AsyncExitStack() as stack:
        calls: list[Any] = []
        for number in range(count):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=SMALL_WINDOW))
            if number % 2:
                calls.append(document_pb2_grpc.DocumentServiceStub(channel).ReadDocumentScores(read_scores))
            else:
                calls.append(inference_pb2_grpc.InferenceServiceStub(channel).Generate(generate))
            await calls[-1].read()
        yield
        assert not any(call.done() for call in calls)


async def test_stalled_readers(server: ServerProcess, campaign: Campaign) -> None:
    fault = "readers that stall"
    readers, seconds = campaign.times(fault), 10.0 if campaign.full else 1.5
    spans: list[tuple[float, float]] = []

    async def listen() -> None:
        began = time.monotonic()
        await asyncio.sleep(seconds)
        spans.append((began, time.monotonic()))

    def running() -> float:
        return server.metric("reformer_requests_running")

    with listening(server.address) as arrivals:
        async with (
            AsyncClient(server.address) as client,
            client.documents.create(b"x" * SCORED_TOKENS, keep_scores=True) as document,
        ):
            await listen()
            before = server.metrics()
            async with stalled_readers(server.address, readers, document.id):
                # The batch is the other stream's alone: those that don't read have been left out of it.
                await asyncio.to_thread(until, lambda: server.metric("reformer_decode_batch_size") <= 1, 300)
                stalled = server.metrics()
                await listen()
                assert running() == readers / 2 + 1
            await asyncio.to_thread(until, lambda: running() == 1)
            await listen()
    gaps = [arrivals.gaps(*span) for span in spans]
    alone, beside = gaps[0] + gaps[2], gaps[1]
    median, late = (quantile(beside, share) / quantile(alone, share) for share in (0.5, 0.99))
    patience = 1 if campaign.full else 4  # a second and a half beside other tests says little
    campaign.measured(
        fault,
        Bar("memory a reader, MiB", (stalled[RSS] - before[RSS]) / readers / MIB, most=8),
        Bar("another stream's median gap ÷ without them", median, most=1.5 * patience),
        Bar("its 99th percentile ÷ without them", late, most=3 * patience),
    )
