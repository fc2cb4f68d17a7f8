"""Three servers in processes of their own, a shared store, and a real Envoy with the project's configuration."""

import asyncio
import functools
import itertools
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.cluster import Cluster, running
from examples.envoy import ENVOY_CONFIG, envoy_program, wait_until
from examples.replica import Replica
from reformer_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    PermissionDeniedError,
    Progress,
    ResourceExhaustedError,
    RetryPolicy,
    UnavailableError,
)
from reformer_client.routing import VARIABLE
from tests.e2e.conftest import model_directory

__all__ = ["model_directory"]  # a fixture, needed here too

DOCUMENTS, RUNNING, WAITING = 30, 8, 16
MOST_MOVED = 1 / 3 + 0.17
"""Of the documents, when one of three replicas is gone. Its share is a third, from which 30 documents are drawn: that
has a standard deviation of 0.086, and this allows two. It is drawn once: ids and the replicas' hash keys are fixed."""
ONCE = RetryPolicy(max_attempts=1)
IMPATIENT = RetryPolicy(max_attempts=8, initial_backoff_seconds=0.1, max_backoff_seconds=1)
LONG = b"All happy families are alike. " * 13_000  # some seconds of reading, and more than one block of 256 KiB


def text_of(document_id: str) -> str:
    return f"What {document_id} says. " * 20


@pytest.fixture(scope="module")
def whole(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ("--model", model_directory, "--dtype", "float32", "--memory", "700MiB")
    options += ("--max-running", RUNNING, "--max-waiting", WAITING)
    with running(tmp_path_factory.mktemp("cluster"), *options) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole: Cluster) -> Iterator[Cluster]:
    """All replicas serve, and they have met no bug."""
    for replica in whole.replicas:
        if replica.server.process.poll() is not None:
            replica.start()
    whole.wait_until_healthy()
    yield whole
    for replica in whole.replicas:
        assert "Traceback" not in replica.log, replica.log


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address, timeout=60, retry=IMPATIENT) as client:
        yield client


def upload(client: Client, prefix: str, number: int = DOCUMENTS) -> list[str]:
    """The ids of documents that are in the store."""
    ids = [f"{prefix}-{each}" for each in range(number)]
    for document_id in ids:
        client.documents.create(text_of(document_id), document_id=document_id)
    wait_until(lambda: all(client.documents.get(document_id).stored for document_id in ids), "they aren't stored")
    return ids


def places(cluster: Cluster, client: Client, ids: list[str]) -> dict[str, str]:
    """The replica that each document's calls go to now."""
    for document_id in ids:
        client.documents.get(document_id)
    holders = cluster.holders()
    return {document_id: holders[document_id] for document_id in ids}


def kill_at(replica: Replica, condition: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    """Kills it as soon as a progress is like that, and only once: it has begun again then."""
    killed: list[Replica] = []

    def look(progress: Progress) -> None:
        if not killed and condition(progress):
            replica.kill()
            killed.append(replica)

    return look


def half_done(progress: Progress) -> bool:
    return 0 < progress.processed_tokens < progress.total_tokens


def busy(cluster: Cluster) -> Replica:
    """The one that works on something."""
    found: list[Replica] = []

    def look() -> bool:
        running = [each for each in cluster.replicas if each.server.process.poll() is None]
        found[:] = [each for each in running if each.server.metric("reformer_requests_running")]
        return bool(found)

    wait_until(look, "no replica works")
    return found[0]


def test_envoy_takes_the_configuration() -> None:
    command = [envoy_program(), "--mode", "validate", "-c", ENVOY_CONFIG, "-l", "warning"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "it warns, e.g. of what is deprecated"


def test_every_call_about_a_document_goes_to_its_replica(cluster: Cluster, client: Client) -> None:
    seen = len(cluster.envoy.calls())
    ids = [f"all-{number}" for number in range(6)]
    for document_id in ids:
        document = client.documents.create(text_of(document_id), document_id=document_id, keep_scores=True)
        assert len(document.generate("x", max_tokens=3).collect().tokens) == 3
        assert document.scores().tokens == document.tokens
        assert len(document.score_continuations(["a", "b"])) == 2
        document.renew()
        client.documents.renew(document_id)
        assert client.documents.get(document_id).tokens == document.tokens
        document.delete()
    calls = cluster.envoy.calls()[seen:]
    assert len(calls) == 8 * len(ids)
    assert {call.document for call in calls} == set(ids), "each call says which document it is about"
    assert {(call.status, call.attempts) for call in calls} == {("OK", 1)}
    by_document = {(call.document, call.replica) for call in calls}
    assert len(by_document) == len(ids), "one replica each"
    assert len({replica for _, replica in by_document}) > 1


def test_calls_without_a_document_go_to_any(cluster: Cluster, client: Client) -> None:
    seen = len(cluster.envoy.calls())
    for _ in range(20):
        client.generate("x", max_tokens=1).collect()
        client.score("Natasha")
    calls = cluster.envoy.calls()[seen:]
    assert {call.replica for call in calls} == {replica.name for replica in cluster.replicas}


def test_administration_is_not_for_clients(cluster: Cluster, client: Client) -> None:
    with pytest.raises(PermissionDeniedError, match="ask the server itself"):
        client.admin.drain()
    with pytest.raises(PermissionDeniedError, match="ask the server itself"):
        list(client.admin.documents())
    client.load()  # which is not administration: everybody may ask
    with Client(cluster.replicas[0].server.address) as direct:
        list(direct.admin.documents())


def test_a_killed_replica_loses_no_document(cluster: Cluster, client: Client) -> None:
    ids = upload(client, "kill")
    before = places(cluster, client, ids)
    assert set(before.values()) == {replica.name for replica in cluster.replicas}, "each has some"
    victim = cluster[before[ids[0]]]
    answers = {each: client.documents.get(each).generate(max_tokens=5, temperature=0).collect().ids for each in ids}

    victim.kill()
    for document_id in ids:  # restored elsewhere, and they say what they said; the client's own retries are enough
        document = client.documents.get(document_id)
        assert document.tokens == len(text_of(document_id))
        assert document.generate(max_tokens=5, temperature=0).collect().ids == answers[document_id]
    cluster.wait_until_healthy({replica.name for replica in cluster.replicas if replica is not victim})
    after = places(cluster, client, ids)

    moved = {document_id for document_id in ids if before[document_id] != after[document_id]}
    assert moved == {document_id for document_id in ids if before[document_id] == victim.name}, "those, and no others"
    assert len(moved) / len(ids) <= MOST_MOVED
    restored = sum(
        replica.server.metric("reformer_document_cache_lookups_total", result="restored")
        for replica in cluster.replicas
        if replica is not victim
    )
    assert restored >= len(moved)

    victim.start()
    cluster.wait_until_healthy()
    assert places(cluster, client, ids) == before, "and back they go"


def test_killed_during_an_upload(cluster: Cluster, client: Client) -> None:
    [known] = upload(client, "beside", 1)
    victim = cluster[places(cluster, client, [known])[known]]
    # Ids that Envoy sends to the same replica: found by asking for them.
    wanted = (f"beside-{number}" for number in itertools.count(1))
    twice = [each for each in itertools.islice(wanted, 40) if _place(cluster, client, each) == victim.name][:2]

    document = client.documents.create(LONG, document_id=twice[0], on_progress=kill_at(victim, half_done))
    assert victim.server.process.poll() is not None, "it was killed in the middle"
    assert document.content_bytes == len(LONG)
    victim.start()
    cluster.wait_until_healthy()

    other = LONG.swapcase()
    once = (other[start : start + 30_000] for start in range(0, len(other), 30_000))
    with pytest.raises(UnavailableError, match=r"can't go on: the source can be read only once.*pass a Path") as caught:
        client.documents.create(once, document_id=twice[1], on_progress=kill_at(victim, half_done))
    assert caught.value.__cause__ is not None


def _place(cluster: Cluster, client: Client, document_id: str) -> str | None:
    """Where a document would be, whether it is there or not."""
    seen = len(cluster.envoy.calls())
    client.documents.delete(document_id)
    return cluster.envoy.calls()[seen].replica


def test_killed_during_a_generation(cluster: Cluster, client: Client) -> None:
    [first, second] = upload(client, "generate", 2)
    victim = cluster[places(cluster, client, [first])[first]]
    document = client.documents.get(first)
    prompt = LONG[:30_000].decode()
    generation = document.generate(prompt, max_tokens=5, on_progress=kill_at(victim, half_done)).collect()
    assert victim.server.process.poll() is not None, "it was killed before the first token"
    assert len(generation.tokens) == 5

    victim = cluster[places(cluster, client, [second])[second]]
    stream = client.documents.get(second).generate(max_tokens=100_000)
    next(stream)
    victim.kill()
    with pytest.raises(UnavailableError, match="the call was cut"):
        stream.collect()


def test_killed_during_a_scoring(cluster: Cluster, client: Client) -> None:
    victims: list[Replica] = []

    def look(progress: Progress) -> None:
        if half_done(progress) and not victims:
            victims.append(busy(cluster))
            victims[0].kill()

    assert client.score(LONG, on_progress=look).content_bytes == len(LONG)
    assert victims


async def test_refusals_come_through_with_their_advice(cluster: Cluster, client: Client) -> None:
    """A proxy that tried RESOURCE_EXHAUSTED again would only add to what is too much."""
    [document_id] = upload(client, "full", 1)
    holder = cluster[places(cluster, client, [document_id])[document_id]]
    before = cluster.envoy.statistics("cluster.reformer.upstream_rq_retry")
    async with AsyncClient(holder.server.address) as direct, AsyncClient(cluster.address, retry=ONCE) as once:
        document = await once.documents.get(document_id)
        streams = [direct.generate("x", max_tokens=100_000) for _ in range(RUNNING + WAITING)]
        first = [asyncio.create_task(anext(stream)) for stream in streams]
        full = functools.partial(holder.server.metric, "reformer_requests_waiting")
        await asyncio.to_thread(wait_until, lambda: full() == WAITING, "the queue isn't full")
        with pytest.raises(ResourceExhaustedError) as caught:
            await document.generate(max_tokens=1).collect()
        for task in first:
            task.cancel()
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after_seconds == 1
    assert cluster.envoy.statistics("cluster.reformer.upstream_rq_retry") == before


def test_deadlines_are_the_clients(cluster: Cluster) -> None:
    """Envoy sets none of its own, and cuts no call that the replica would end with a status."""
    with Client(cluster.address, retry=ONCE) as client, pytest.raises(DeadlineExceededError):
        client.score(LONG, timeout=0.5)


async def test_rolling_restart_under_load(cluster: Cluster) -> None:
    """Every kind of call, all the time, through all three restarts: none fails."""
    stop, calls, failures = asyncio.Event(), itertools.count(), []

    async def load(client: AsyncClient, worker: int) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            try:
                await work(client, f"rolling-{worker}-{number % 5}")
                next(calls)
            except Exception as error:  # noqa: BLE001 -- all of them are to be told
                failures.append(f"{type(error).__name__}: {error}")

    async def work(client: AsyncClient, document_id: str) -> None:
        document = await client.documents.create(text_of(document_id), document_id=document_id)
        assert len((await document.generate("x", max_tokens=20).collect()).tokens) == 20
        await document.score_continuations(["a", "b"])
        await document.renew()
        assert (await client.documents.get(document_id)).tokens == len(text_of(document_id))
        assert (await client.score("Natasha")).tokens == 7

    async with AsyncClient(cluster.address, timeout=60) as client:
        workers = [asyncio.create_task(load(client, worker)) for worker in range(6)]
        await asyncio.sleep(1)
        for replica in cluster.replicas:
            before = next(calls)
            assert await asyncio.to_thread(replica.stop) == 0
            await asyncio.to_thread(replica.start)
            await asyncio.to_thread(cluster.wait_until_healthy)
            assert next(calls) > before + 5, "there was load"
        stop.set()
        await asyncio.gather(*workers)
    assert not failures, failures[:5]


def test_without_a_proxy(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's own ring in the client: the same document, the same replica; none fails when one drains, or is killed."""
    monkeypatch.setenv(VARIABLE, "true")
    target = "ipv4:" + ",".join(replica.server.address for replica in cluster.replicas)
    with Client(target, routing="document", timeout=60, retry=IMPATIENT) as client:
        ids = upload(client, "ring")
        held = _in_memory(cluster, client, ids)
        assert sum(held.values()) == len(ids), "each is in the memory of one replica only"
        assert min(held.values()) > 0

        victim, drained = cluster.replicas[0], cluster.replicas[1]
        victim.kill()
        for document_id in ids:
            assert len(client.documents.get(document_id).generate(max_tokens=2).collect().tokens) == 2
        with Client(drained.server.address) as direct, Client(target, routing="document", retry=ONCE) as once:
            stream = direct.generate("x", max_tokens=2000)
            next(stream)
            once.model()
            drained.server.process.terminate()
            time.sleep(0.5)  # its health has told the clients
            for document_id in ids:
                once.documents.get(document_id)
            assert drained.server.process.poll() is None, "it was still draining"
            assert len(stream.collect().tokens) == 1999


def _in_memory(cluster: Cluster, client: Client, ids: list[str]) -> dict[str, int]:
    """How many of these documents' calls each replica gets, when each document is asked for five times."""

    def lookups() -> dict[str, float]:
        return {
            replica.name: replica.server.metric("reformer_document_cache_lookups_total", result="hit")
            for replica in cluster.replicas
        }

    before = lookups()
    for document_id in ids:
        for _ in range(5):
            client.documents.get(document_id)
    after = lookups()
    counts = {name: after[name] - before[name] for name in before}
    assert all(count % 5 == 0 for count in counts.values()), counts
    return {name: int(count / 5) for name, count in counts.items()}
