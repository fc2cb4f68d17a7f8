"""Many at once: sessions don't see each other, those that leave free their pages, those that stop slow nobody."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.serving import ServerProcess
from reformer_client import Client, Progress
from tests.e2e.conftest import until

TEXT = (Path(__file__).parents[2] / "examples" / "emma.txt").read_bytes()[:200_000]

pytestmark = pytest.mark.usefixtures("all_pages_come_back")


def test_sessions_do_not_see_each_other(client: Client) -> None:
    """Eight sessions on three documents give the tokens that each gives alone."""
    contents = [TEXT[:50], TEXT[1000:6000], TEXT[20_000:60_000]]
    documents = [client.documents.create(content) for content in contents]

    def generate(index: int) -> tuple[int, ...]:
        document = documents[index % 3]
        return document.generate(f"prompt {index}", temperature=0.0, max_tokens=40).collect().ids

    alone = [generate(index) for index in range(8)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(generate, range(8)))
    assert together == alone
    assert len(set(alone)) > 1
    for document in documents:
        document.delete()


def test_generation_goes_on_during_a_prefill(client: Client) -> None:
    """A stream gets tokens between the slices of a long document."""
    reading = threading.Event()
    read = threading.Event()

    def on_progress(progress: Progress) -> None:
        reading.set()

    def upload() -> None:
        client.documents.create(TEXT, on_progress=on_progress).delete()
        read.set()

    thread = threading.Thread(target=upload)
    with client.generate("x", max_tokens=100_000) as stream:
        next(stream)
        thread.start()
        assert reading.wait(30)
        during = 0
        while not read.is_set() and during < 50:
            next(stream)
            during += 1
    thread.join()
    assert during >= 10


def test_leaving_a_stream_frees_its_pages(client: Client, server: ServerProcess) -> None:
    before = server.metrics()['reformer_cancelled_total{phase="decode"}']
    with client.generate("x", max_tokens=100_000) as stream:
        next(stream)
        assert client.load().used_page_bytes > 0
    until(lambda: client.load().used_page_bytes == 0)
    assert server.metrics()['reformer_cancelled_total{phase="decode"}'] == before + 1


def test_cancelled_prefill_frees_its_pages(server: ServerProcess, client: Client) -> None:
    before = server.metrics()['reformer_cancelled_total{phase="prefill"}']
    other = Client(server.address)
    reading = threading.Event()

    def upload() -> None:
        with pytest.raises(Exception, match=r"(?i)cancel|closed"):
            other.documents.create(TEXT, document_id="left", on_progress=lambda progress: reading.set())

    thread = threading.Thread(target=upload)
    thread.start()
    assert reading.wait(30)
    other.close()
    thread.join()
    until(lambda: client.load().used_page_bytes == 0)
    assert server.metrics()['reformer_cancelled_total{phase="prefill"}'] == before + 1
    client.documents.delete("left")


def test_killed_client_frees_its_pages(client: Client, server: ServerProcess) -> None:
    program = (
        "import sys; from reformer_client import Client; client = Client(sys.argv[1])\n"
        "for token in client.generate('x', max_tokens=10**5): print(token.id, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, server.address], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert client.load().running_requests == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    until(lambda: client.load().used_page_bytes == 0)


def test_reader_that_stops_slows_nobody(client: Client, server: ServerProcess) -> None:
    program = (
        "import sys, time; from reformer_client import Client; client = Client(sys.argv[1])\n"
        "stream = client.generate('x', max_tokens=10**5); print(next(stream).id, flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, server.address], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    generation = client.generate("y", max_tokens=200).collect()
    assert len(generation.ids) == 200
    process.kill()
    process.wait()
    process.stdout.close()
