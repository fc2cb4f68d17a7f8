"""Each series moves when it should, and no other: a scripted load through the SDK, on the real engine and a store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from reformer_client import AsyncClient
from reformer_client.errors import DataLossError, InternalError, NotFoundError, ReformerError, ResourceExhaustedError
from reformer_server import ServedModel
from reformer_server.errors import StoreUnavailableError
from tests.server.conftest import Running, Serve, running_server
from tests.server.pem_files import Files
from tests.server.tenants_files import ONCE, table, write
from tests.server.test_real_engine import MAX_RUNNING, TEXT, make_engine
from tests.server.test_stored_documents import data_files
from tests.server.uploading import chunk, header

TOKENS = len(TEXT)
OTHER_TEXT = TEXT[::-1]
GENERATE, CREATE, DELETE = (
    "InferenceService/Generate",
    "DocumentService/CreateDocument",
    "DocumentService/DeleteDocument",
)


class Load:
    """A server, its client, and the server's series."""

    def __init__(self, running: Running, client: AsyncClient) -> None:
        self.running, self.client = running, client

    def values(self) -> dict[str, float]:
        """All series, as "name label label"; of histograms only how often they were observed."""
        return {
            " ".join([sample.name.removeprefix("reformer_"), *(value for _, value in sorted(sample.labels.items()))]): (
                sample.value
            )
            for family in self.running.server.metrics.registry.collect()
            for sample in family.samples
            if family.name.startswith("reformer_") and not sample.name.endswith(("_bucket", "_sum"))
        }

    @asynccontextmanager
    async def counts(self, **expected: int) -> AsyncIterator[None]:
        """The block raises these counters and counts by so much, and no others; `/` and spaces are `__` in names."""
        before = self.values()
        yield
        moved: dict[str, float] = {}

        def as_expected() -> bool:
            moved.clear()
            moved.update(
                {
                    name: value - before.get(name, 0)
                    for name, value in self.values().items()
                    if name.partition(" ")[0].endswith(("_total", "_count"))
                    and not name.startswith(("engine_", "requests_total", "request_duration"))
                    and value != before.get(name, 0)
                }
            )
            return moved == {name.replace("__", " "): value for name, value in expected.items()}

        try:
            await self.running.until(as_expected)
        except TimeoutError:
            assert moved == {name.replace("__", " "): value for name, value in expected.items()}

    async def ended(self, method: str, code: str) -> float:
        """How many calls ended so, once the ones just made are counted."""
        await asyncio.sleep(0.02)
        return self.values().get(f"requests_total {code} {method}", 0)

    async def stored(self) -> None:
        await self.running.until(lambda: self.values()["document_store_pending"] == 0)


@pytest.fixture
async def load(served_model: ServedModel, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Load]:
    """Memory for a document and a half, or for as many as its parameter says."""
    engine = make_engine(served_model, documents=getattr(request, "param", 1.5), max_waiting=1)
    settings = {"store": str(tmp_path / "store"), "max_waiting": 1, "max_running": MAX_RUNNING}
    async with (
        running_server(served_model, engine, **settings) as running,
        AsyncClient(f"127.0.0.1:{running.server.port}", retry=ONCE, timeout=20) as client,
    ):
        yield Load(running, client)


async def test_documents_and_generations(load: Load) -> None:
    client = load.client
    assert load.values()["serving"] == 1
    assert load.values()["requests_capacity waiting"] == 1
    async with load.counts(
        prefill_seconds_count=1,
        queue_seconds_count=1,
        prefill_tokens_total__computed=TOKENS,
        document_cache_lookups_total__miss=1,
    ):
        document = await client.documents.create(TEXT, document_id="a", keep_scores=True)
    values = load.values()
    assert values["document_cache_documents memory"] == 1
    assert values["pages_used_bytes"] > 0
    assert values["document_cache_bytes memory"] == document.info.memory_bytes
    assert values["document_cache_capacity_bytes memory"] == values["memory_bytes cpu pages"]
    await load.stored()

    first_generation = {
        "queue_seconds_count": 1,
        "prefill_seconds_count": 1,
        "time_per_output_token_seconds_count": 1,
        "generated_tokens_total": 8,
        "prefill_tokens_total__computed": 2,
    }
    async with load.counts(
        **first_generation,
        prefill_tokens_total__cached=TOKENS,
        document_cache_lookups_total__hit=1,
        time_to_first_token_seconds_count__hit=1,
    ):
        await document.generate("ab", max_tokens=8).collect()
    async with load.counts(**first_generation, time_to_first_token_seconds_count__miss=1):
        await client.generate("ab", max_tokens=8).collect()
    async with load.counts(document_cache_lookups_total__hit=1, prefill_tokens_total__cached=TOKENS):
        await client.documents.create(TEXT, document_id="again")
    async with load.counts(document_cache_evictions_total__deleted=1):
        await client.documents.delete("again")

    async with load.counts(
        prefill_seconds_count=1,
        queue_seconds_count=1,
        prefill_tokens_total__computed=TOKENS,
        document_cache_lookups_total__miss=1,
        document_cache_evictions_total__memory=1,
    ):
        await client.documents.create(OTHER_TEXT, document_id="b")
    await load.stored()
    restored = {**first_generation, "queue_seconds_count": 2, "restore_seconds_count": 1}
    async with load.counts(
        **restored,
        prefill_tokens_total__restored=TOKENS,
        document_cache_lookups_total__restored=1,
        document_cache_evictions_total__memory=1,
        time_to_first_token_seconds_count__restored=1,
    ):
        await document.generate("ab", max_tokens=8).collect()
    assert await load.ended(GENERATE, "OK") == load.values()[f"request_duration_seconds_count {GENERATE}"] == 3
    assert await load.ended(CREATE, "OK") == 3
    assert load.values()["engine_turns_total"] > 0
    assert load.values()["engine_busy_seconds_total"] > 0


async def test_scores(load: Load) -> None:
    async with load.counts(scored_tokens_total=TOKENS, prefill_seconds_count=1, queue_seconds_count=1):
        await load.client.score(TEXT)
    document = await load.client.documents.create(TEXT)
    async with load.counts(
        scored_tokens_total=5,
        prefill_seconds_count=1,
        queue_seconds_count=1,
        document_cache_lookups_total__hit=1,
        prefill_tokens_total__cached=TOKENS,
    ):
        await document.score_continuations(["abc", "de"])


async def test_leases_that_end(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    await load.client.documents.create(TEXT, document_id="a", lease_seconds=1)
    async with load.counts(document_cache_evictions_total__expired=1):
        pass
    async with load.counts(document_cache_lookups_total__miss=1, request_errors_total__DOCUMENT_EXPIRED=1):
        with pytest.raises(NotFoundError):
            await load.client.documents.get("a")


@pytest.mark.parametrize("load", [10], indirect=True)
async def test_a_full_server_and_cancelled_calls(load: Load) -> None:
    async def endless() -> None:
        async for _ in load.client.generate("a", max_tokens=900, seed=1):
            pass

    tasks = []
    for running in range(1, MAX_RUNNING + 1):
        tasks.append(asyncio.create_task(endless()))
        await load.running.until(lambda running=running: load.values()["decode_batch_size"] == running)  # type: ignore[misc]
    tasks.append(asyncio.create_task(endless()))
    await load.running.until(lambda: load.values()["requests_waiting"] == 1)
    assert load.values()["requests_running"] == MAX_RUNNING
    before = load.values()
    with pytest.raises(ResourceExhaustedError):
        await endless()
    await load.running.until(lambda: load.values()["request_errors_total QUEUE_FULL"] == 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await load.running.until(lambda: load.values()["cancelled_total decode"] == MAX_RUNNING)
    await load.running.until(lambda: load.values()["cancelled_total waiting"] == 1)
    after = load.values()
    assert after["cancel_latency_seconds_count"] == before["cancel_latency_seconds_count"] + MAX_RUNNING + 1
    assert await load.ended(GENERATE, "CANCELLED") == MAX_RUNNING + 1
    assert await load.ended(GENERATE, "RESOURCE_EXHAUSTED") == 1


async def test_an_upload_on_its_way(load: Load) -> None:
    call = load.running.documents.CreateDocument()
    await call.write(header())
    await call.write(chunk(TEXT))
    await load.running.until(lambda: load.values()["upload_bytes"] == TOKENS)
    call.cancel()
    await load.running.until(lambda: load.values()["upload_bytes"] == 0)
    assert await load.ended(CREATE, "CANCELLED") == 1


async def test_bugs_and_a_store_that_fails(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise StoreUnavailableError("s3://somewhere", "no network")

    monkeypatch.setattr(load.running.server._encoder, "texts", lambda texts: 1 / 0)
    async with load.counts(request_errors_total__INTERNAL=1):
        with pytest.raises(InternalError):
            await load.client.tokenize("a")
    assert await load.ended("ModelService/Tokenize", "INTERNAL") == 1
    monkeypatch.setattr(load.running.server.archive._store, "record", fails)  # type: ignore[attr-defined]
    async with load.counts(document_store_errors_total=1, request_errors_total__STORE_UNAVAILABLE=1):
        with pytest.raises(ReformerError):
            await load.client.documents.get("somewhere-else")


async def test_documents_that_are_lost(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = await load.client.documents.create(TEXT, document_id="a")
    await load.stored()
    await load.client.documents.create(OTHER_TEXT, document_id="b")  # and "a" is in the store only
    for file in data_files(tmp_path / "store"):
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)
    await load.stored()
    with pytest.raises(DataLossError):
        await document.generate("ab", max_tokens=8).collect()
    await load.running.until(lambda: load.values()["documents_lost_total damaged"] == 1)
    await load.running.until(lambda: load.values()["request_errors_total DOCUMENT_DAMAGED"] == 1)

    monkeypatch.setattr(load.running.server.archive, "writer", lambda *_: 1 / 0)
    await load.client.documents.create(TEXT + b"!", document_id="c")
    await load.running.until(lambda: load.values()["documents_lost_total not_written"] == 1)


async def test_files_that_change(serve: Serve, tmp_path: Path, authority: trustme.CA) -> None:
    files = Files(tmp_path, authority)
    write(files.tenants, table("acme"))
    running = await serve(**files.settings(tenants=True))
    assert running.metric("configuration_current", file="tls") == 1
    first = running.metric("tls_certificate_expire_time_seconds")
    write(files.tenants, "no toml")
    files.certificate.write_bytes(b"nor PEM")
    for file in ("tls", "tenants"):
        await running.until(lambda file=file: running.metric("configuration_current", file=file) == 0)  # type: ignore[misc]
    assert running.metric("tls_certificate_expire_time_seconds") == first
    write(files.tenants, table("acme"))
    files.write(authority.issue_cert("localhost"))
    for file in ("tls", "tenants"):
        await running.until(lambda file=file: running.metric("configuration_current", file=file) == 1)  # type: ignore[misc]


async def test_a_server_that_drains_doesnt_serve(served_model: ServedModel, tmp_path: Path) -> None:
    async with running_server(served_model, make_engine(served_model)) as running:
        assert running.metric("serving") == 1
        await running.server.stop()
        assert running.metric("serving") == 0
