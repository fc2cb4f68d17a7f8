"""Uploads whose connection breaks: they go on from where they were, and become the document that they should be."""

import array
import hashlib
import random

import pytest

from benchmarks.bars import Bar
from benchmarks.serving import ServerProcess
from reformer_client import AsyncClient, RetryPolicy
from reformer_client.document import AsyncDocument
from tests.faults.campaign import Campaign
from tests.faults.proxy import Fault, Faults, proxying

BLOCK_BYTES = 4096  # of what the client sends at a time, so that there are many places to go on from
MOST_CUTS = 3
# After a connection that broke in its first bytes, gRPC makes no other for 0.2 s and more; calls fail meanwhile.
RETRY = RetryPolicy(max_attempts=MOST_CUTS + 6, initial_backoff_seconds=0.2)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_client.sources.BLOCK_BYTES", BLOCK_BYTES)


def cut(randomness: random.Random, content_bytes: int) -> Faults:
    """A connection that breaks anywhere: mostly in what is sent, at times in the little that is answered."""
    if randomness.random() < 0.8:
        return Faults(to_server=Fault(cut_at=randomness.randrange(content_bytes)))
    return Faults(to_client=Fault(cut_at=randomness.randrange(500)))


async def facts(document: AsyncDocument) -> tuple[bytes, int, int, bytes]:
    """All that tells a document from another, its scores bit by bit."""
    scores = await document.scores()
    return document.info.sha256, document.content_bytes, document.tokens, bytes(scores.logprobs)


@pytest.mark.usefixtures("small_blocks")
async def test_cut_at_random_bytes(server: ServerProcess, campaign: Campaign) -> None:
    randomness, times = random.Random(5), campaign.times("uploads cut")
    cuts = resumed = equal = content_bytes = sent_bytes = 0
    async with AsyncClient(server.address) as client:
        for number in range(times):
            ids = array.array("I", randomness.choices(range(258), k=randomness.randrange(4000, 12_000)))
            content = ids.tobytes()
            # An address of its own: else gRPC may give a client the connection of the one before, if that isn't
            # closed yet.
            async with proxying(server.port) as proxy:
                faults = [cut(randomness, len(content)) for _ in range(randomness.randint(1, MOST_CUTS))]
                proxy.upcoming.extend(faults)
                async with AsyncClient(proxy.address, retry=RETRY) as broken:
                    document = await broken.documents.create(ids, document_id=f"cut-{number}", keep_scores=True)
                resumed += proxy.connections > 1
                cuts += proxy.cuts
                sent_bytes += proxy.to_server_bytes
            content_bytes += len(content)
            # If an answer was cut, the document can have been there when the call was made again.
            assert not document.cached or any(fault.to_client.cut_at is not None for fault in faults)
            assert document.info.sha256 == hashlib.sha256(content).digest()
            after_cuts = await facts(await client.documents.get(document.id))
            await client.documents.delete(document.id)
            async with client.documents.create(ids, keep_scores=True) as document:
                assert not document.cached
                equal += after_cuts == await facts(document)
    campaign.measured(
        "uploads cut",
        Bar("uploads that went on over a further connection", resumed, least=0.9 * times),
        Bar("connections that were cut", cuts, least=times),
        Bar("bytes sent ÷ bytes of the contents", sent_bytes / content_bytes, most=1.5),
        Bar("documents with the digest and the scores of an undisturbed upload", equal, least=times, most=times),
    )
