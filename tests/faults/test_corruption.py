"""Bytes that change on their way, without TLS to notice: errors and no hangs, and never a document of other content."""

import asyncio
import hashlib
import random
from collections import Counter

from benchmarks.bars import Bar
from benchmarks.serving import ServerProcess
from reformer_client import AsyncClient, DeadlineExceededError, ReformerError, RetryPolicy
from tests.e2e.conftest import until
from tests.faults.campaign import Campaign
from tests.faults.proxy import Fault, Faults, proxying
from tests.faults.test_lost_clients import idle

CONTENT_BYTES, TOKENS = 5000, 30
DEADLINE_SECONDS = 3.0  # of a call that waits for a frame whose length has changed


def corrupted(randomness: random.Random, to_server: bool, size: int) -> Faults:
    """Up to five bytes of the first `size`, each with some of its bits turned over; most in one direction's content."""
    places = randomness.sample(range(size), randomness.randint(1, 5))
    fault = Fault(flips={place: randomness.randrange(1, 256) for place in places})
    return Faults(to_server=fault) if to_server else Faults(to_client=fault)


async def test_flipped_bytes(server: ServerProcess, campaign: Campaign) -> None:
    fault, randomness, sent = "connections corrupted", random.Random(5), set()
    times, ends, flipped = campaign.times(fault), Counter[str](), 0

    async def call(client: AsyncClient, kind: int) -> None:
        content = randomness.randbytes(CONTENT_BYTES // 2).hex().encode()
        if kind == 0:
            sent.add(hashlib.sha256(content).digest())
            await client.documents.create(content)
        elif kind == 1:
            await client.generate(content[:200].decode(), max_tokens=TOKENS).collect()
        else:
            await client.score(content)

    async with AsyncClient(server.address) as undisturbed:
        for number in range(times):
            kind, to_server = number % 3, randomness.random() < 0.6
            size = (CONTENT_BYTES if kind != 1 else 600) if to_server else 1000
            async with proxying(server.port) as proxy:
                proxy.upcoming.append(corrupted(randomness, to_server, size))
                options = {"retry": RetryPolicy(max_attempts=1), "timeout": DEADLINE_SECONDS}
                async with AsyncClient(proxy.address, **options) as client, asyncio.timeout(2 * DEADLINE_SECONDS):
                    try:
                        await call(client, kind)
                    except DeadlineExceededError:
                        ends["deadline"] += 1
                    except ReformerError:
                        ends["error"] += 1
                    else:
                        ends["answer"] += 1
                flipped += proxy.flipped
            async for document in undisturbed.documents.list():
                assert document.info.sha256 in sent, "a document has content that nobody has sent"
                await document.delete()
    await asyncio.to_thread(until, lambda: idle(server))
    campaign.measured(
        fault,
        Bar("bytes that were changed", flipped, least=times / 2),
        Bar("calls that ended with an error of the SDK at once", ends["error"], least=times / 4),
        Bar("calls that ended at their deadline", ends["deadline"], most=times / 2),
        Bar("calls that noticed nothing, none of them a changed document", ends["answer"], most=times / 2),
    )
