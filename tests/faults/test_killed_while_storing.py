"""SIGKILL at random moments of writing behind and of restoring.

Nothing that is half written can be read, and nothing that the server called stored is lost.
"""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.bars import Bar
from benchmarks.serving import ServerProcess
from reformer_client import Client, DataLossError, NotFoundError, ReformerError, RetryPolicy
from reformer_server.errors import StoredDocumentDamagedError
from reformer_server.store.document_store import DocumentStore
from tests.faults.campaign import Campaign
from tests.faults.conftest import Start

CONTENT_BYTES = 100_000
PROMPT = "x"
ONCE = RetryPolicy(max_attempts=1)


def content(number: int) -> bytes:
    return (f"{number} " * CONTENT_BYTES).encode()[:CONTENT_BYTES]


def answer(client: Client, number: int) -> list[int]:
    document = client.documents.get(f"d{number}")
    return [token.id for token in document.generate(PROMPT, max_tokens=5, temperature=0)]


def create(client: Client, number: int) -> None:
    client.documents.create(content(number), document_id=f"d{number}")


def is_stored(client: Client, number: int) -> bool:
    return client.documents.get(f"d{number}").stored


def seconds_of(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def until_stored(client: Client, number: int) -> None:
    while not is_stored(client, number):
        time.sleep(0.002)


def killed_after(server: ServerProcess, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, server.process.kill)
    timer.start()
    return timer


def damaged(store: DocumentStore) -> list[str]:
    """What a reader would find that isn't whole: contents by all their bytes, ids by what they stand for."""
    found = []
    for record in store.records("anonymous"):
        try:
            manifest = store.find(record.identity)
            assert manifest is not None
            reader = store.reader(manifest)
            for _ in reader.slices():
                pass
            reader.close()
        except (AssertionError, StoredDocumentDamagedError) as error:
            found.append(f"{record.document_id}: {error}")
    return found


@pytest.mark.timeout(7200)
def test_killed_while_storing_and_restoring(start: Start, campaign: Campaign, tmp_path: Path) -> None:
    fault, chance = "SIGKILL while storing or restoring", random.Random(1)
    options = ("--store", tmp_path / "store", "--max-lease", "7d", "--default-lease", "7d")
    with Client((server := start(*options)).address) as client:
        create(client, 0)
        work_seconds = seconds_of(lambda: until_stored(client, 0))  # a restore takes about as long
        expected = {0: answer(client, 0)}
        server.stop()

    store, stored = DocumentStore(str(tmp_path / "store")), {0}
    unfinished, lost, half, wrong = 0, 0, 0, 0
    times = campaign.times(fault)
    for number in range(1, times + 1):
        server = start(*options)
        with Client(server.address, retry=ONCE) as client:
            latest = max(expected)  # which the one before was killed for: whole, or not there at all
            try:
                wrong += answer(client, latest) != expected[latest]
            except (NotFoundError, DataLossError):
                lost += latest in stored
            others = sorted(stored - {latest})
            storing = number % 2 == 1 or not others
            if storing:
                create(client, number)
                expected[number] = answer(client, number)
            timer = killed_after(server, chance.uniform(0, 1.3 * work_seconds))
            try:
                if storing:
                    until_stored(client, number)
                    stored.add(number)
                else:
                    other = chance.choice(others)
                    wrong += answer(client, other) != expected[other]
            except ReformerError:
                unfinished += 1
            timer.join()
            server.process.wait(30)
        half += len(damaged(store))
        lost += len(stored - {int(record.document_id[1:]) for record in store.records("anonymous")})
    campaign.measured(
        fault,
        Bar("documents that could be read in part", half, least=0, most=0),
        Bar("documents that gave other tokens", wrong, least=0, most=0),
        Bar("stored documents that were lost", lost, least=0, most=0),
        Bar("kills that a client noticed in mid-call", unfinished, least=times // 4),
    )
