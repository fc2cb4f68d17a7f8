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
from reformer_client import Client, DataLossError, Document, NotFoundError, ReformerError, RetryPolicy
from reformer_server.errors import StoredDocumentDamagedError
from reformer_server.store.blobs import UNFINISHED
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


def create(client: Client, number: int) -> Document:
    """Returns when the store has it."""
    return client.documents.create(content(number), document_id=f"d{number}")


def when_it_writes(folder: Path, work: Callable[[], object]) -> threading.Thread:
    """Does the work as soon as a content is being written in there."""
    before = {*folder.rglob(f"*{UNFINISHED}")}

    def wait() -> None:
        deadline = time.monotonic() + 60
        while {*folder.rglob(f"*{UNFINISHED}")} <= before:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing has been written in {folder} for a minute")
            time.sleep(0.001)
        work()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


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
    folder, moments = tmp_path / "store", []
    options = ("--store", folder, "--max-lease", "7d", "--default-lease", "7d")
    with Client((server := start(*options)).address) as client:
        when_it_writes(folder, lambda: moments.append(time.monotonic()))
        create(client, 0)
        work_seconds = time.monotonic() - moments[0]  # a restore takes about as long
        expected = {0: answer(client, 0)}
        server.stop()

    store, stored = DocumentStore(str(folder)), {0}
    unfinished, lost, half, wrong = 0, 0, 0, 0
    times = campaign.times(fault)
    unharmed = start()
    for number in range(1, times + 1):
        server = start(*options)

        def kill_later(server: ServerProcess = server, seconds: float = chance.uniform(0, 1.3 * work_seconds)) -> None:
            time.sleep(seconds)
            server.process.kill()

        with Client(server.address, retry=ONCE) as client:
            latest = max(expected)  # which the one before was killed for: whole, or not there at all
            try:
                wrong += answer(client, latest) != expected[latest]
            except (NotFoundError, DataLossError):
                lost += latest in stored
            others = sorted(stored - {latest})
            storing = number % 2 == 1 or not others
            if storing:
                with Client(unharmed.address) as other_client:
                    create(other_client, number)
                    expected[number] = answer(other_client, number)
                    other_client.documents.delete(f"d{number}")
                killer = when_it_writes(folder, kill_later)
            else:
                killer = threading.Thread(target=kill_later)
                killer.start()
            try:
                if storing:
                    if create(client, number).stored:
                        stored.add(number)
                else:
                    other = chance.choice(others)
                    wrong += answer(client, other) != expected[other]
            except ReformerError:
                unfinished += 1
            killer.join()
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
