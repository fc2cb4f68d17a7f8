"""A server that stops stays ready until the store has what clients know of: other servers are asked about it next."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from reformer.v1 import document_pb2, model_pb2
from reformer_server import ServedModel
from tests.server.conftest import Running, running_server
from tests.server.statuses import refused
from tests.server.test_lifecycle import SERVING, health
from tests.server.test_real_engine import TEXT, make_engine
from tests.server.test_stored_documents import CONTENTS, generate, get
from tests.server.uploading import chunk, create_document, header

GRACE_SECONDS = 20.0


class SlowStore:
    """Keeps nothing until a test says so; clients are told after a moment."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("reformer_server.stopping.UNTOLD_SECONDS", 0.1)
        self.may_write = asyncio.Event()
        archive = running.server.archive
        keep = archive.keep  # type: ignore[attr-defined]

        async def keep_later(*arguments: object) -> None:
            await self.may_write.wait()
            await keep(*arguments)

        monkeypatch.setattr(archive, "keep", keep_later)


@pytest.fixture
async def running(served_model: ServedModel, tmp_path: Path) -> AsyncIterator[Running]:
    engine = make_engine(served_model, documents=4)
    settings = {"store": str(tmp_path / "store"), "drain_grace_seconds": GRACE_SECONDS}
    async with running_server(served_model, engine, **settings) as running:
        yield running


async def load(running: Running) -> model_pb2.GetLoadResponse:
    return await running.model.GetLoad(model_pb2.GetLoadRequest())


async def test_it_serves_until_the_store_has_what_clients_know(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore(running, monkeypatch)
    await create_document(running, TEXT, document_id="a")
    stopping = asyncio.create_task(running.server.stop())
    while not (await load(running)).draining:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    with refused(grpc.StatusCode.UNAVAILABLE) as refusal:
        await create_document(running, CONTENTS[1], document_id="b")
    assert refusal.reason == "DRAINING"
    assert await health(running) == SERVING
    assert await generate(running, "a")
    assert not (await get(running, "a")).stored
    store.may_write.set()
    await stopping


async def test_it_doesnt_wait_for_a_store_longer_than_half_the_grace_period(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowStore(running, monkeypatch)
    running.server.settings = replace(running.server.settings, drain_grace_seconds=0.6)
    await create_document(running, TEXT, document_id="a")
    began = asyncio.get_running_loop().time()
    stopping = asyncio.create_task(running.server.stop())
    while await health(running) == SERVING:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert asyncio.get_running_loop().time() - began > 0.25
    await stopping
    assert 0.5 < asyncio.get_running_loop().time() - began < 10


async def test_what_is_read_meanwhile_is_told_of_when_it_is_stored(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, the_rest = SlowStore(running, monkeypatch), asyncio.Event()

    async def requests() -> AsyncIterator[document_pb2.CreateDocumentRequest]:
        yield header(document_id="b")
        await the_rest.wait()
        yield chunk(TEXT)

    creating = asyncio.create_task(answer_to(running, requests()))
    while (await load(running)).running_calls == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    stopping = asyncio.create_task(running.server.stop())
    while await health(running) == SERVING:  # noqa: ASYNC110 -- nothing is on its way to the store yet
        await asyncio.sleep(0.005)
    the_rest.set()
    await running.until(lambda: len(running.server.write_behind or ()) == 1)
    await asyncio.sleep(0.2)
    assert not creating.done()
    store.may_write.set()
    assert (await creating).stored
    await stopping


async def answer_to(
    running: Running, requests: AsyncIterator[document_pb2.CreateDocumentRequest]
) -> document_pb2.Document:
    return [response async for response in running.documents.CreateDocument(requests)][-1].document
