"""Two live servers that share a store, without a proxy that would send calls about one document to one of them."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from reformer.v1 import document_pb2
from reformer_client import AbortedError, AlreadyExistsError, AsyncClient, FailedPreconditionError, NotFoundError
from reformer_server import ServedModel
from reformer_server.store.data import DataReader
from reformer_server.store.manifest import ContentManifest
from reformer_server.store_archive import StoreArchive
from tests.server.conftest import Running, running_server
from tests.server.statuses import refused
from tests.server.test_real_engine import TEXT, make_engine
from tests.server.test_stored_documents import CONTENTS, data_files, generate, get, until_stored
from tests.server.uploading import create_document, seconds

Replicas = tuple[Running, Running]
WHOLE = document_pb2.ReadDocumentScoresRequest(document_id="a")


@pytest.fixture
async def replicas(served_model: ServedModel, tmp_path: Path) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:

        async def serve() -> Running:
            engine = make_engine(served_model, documents=4)
            return await stack.enter_async_context(running_server(served_model, engine, store=str(tmp_path / "store")))

        yield await serve(), await serve()


async def delete(running: Running, id: str) -> None:
    await running.documents.DeleteDocument(document_pb2.DeleteDocumentRequest(document_id=id))


async def renew(running: Running, id: str, lease: int = 1000) -> document_pb2.Document:
    request = document_pb2.RenewDocumentRequest(document_id=id, lease=seconds(lease))
    return (await running.documents.RenewDocument(request)).document


async def settled(*replicas: Running) -> None:
    """Nothing is on its way to the store, and everybody looks again."""
    for running in replicas:
        assert running.server.write_behind is not None
        async with asyncio.timeout(10):
            await running.server.write_behind.drain()


@pytest.fixture
def always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if five seconds had passed between any two calls."""
    monkeypatch.setattr("reformer_server.documents.FRESH_SECONDS", 0.0)


async def test_the_same_content_at_the_same_time(replicas: Replicas, tmp_path: Path) -> None:
    created = await asyncio.gather(*(create_document(each, TEXT, document_id="a") for each in replicas))
    assert {document.sha256 for document in created} == {hashlib.sha256(TEXT).digest()}
    for each in replicas:
        await until_stored(each, "a")
    one, two = [await generate(each, "a") for each in replicas]
    assert one == two
    record = await get(replicas[0], "a")
    assert len(data_files(tmp_path / "store")) in (1, 2), "what one of them wrote in vain is cleared away later"
    await delete(replicas[0], "a")
    assert record.stored


async def test_a_client_is_told_when_the_other_one_knows(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy may send the client's next call there: a replica that comes back takes its documents' calls at once."""
    one, two = replicas
    keep = one.server.archive.keep

    async def keep_later(*arguments: Any) -> None:
        await asyncio.sleep(0.2)
        await keep(*arguments)

    monkeypatch.setattr(one.server.archive, "keep", keep_later)
    created = await create_document(one, TEXT, document_id="a")
    assert created.stored
    assert await generate(two, "a")


@pytest.mark.usefixtures("always_fresh")
async def test_other_content_at_the_same_time(replicas: Replicas) -> None:
    """Who stores it first keeps the id; both agree, and what they say is what they have."""
    for attempt in range(5):
        id = f"a{attempt}"
        await asyncio.gather(
            *(create_document(each, content, document_id=id) for each, content in zip(replicas, CONTENTS, strict=False))
        )
        await settled(*replicas)
        found = [await get(each, id) for each in replicas]
        assert found[0].sha256 == found[1].sha256
        assert found[0].stored
        assert found[1].stored
        assert await generate(replicas[0], id) == await generate(replicas[1], id)


async def test_the_one_that_was_stored_stays(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stored` was true once: another replica that learns of the id too late doesn't take that back."""
    one, two = replicas
    await create_document(one, CONTENTS[0], document_id="a")
    await until_stored(one, "a")
    with monkeypatch.context() as patched:  # the other has looked before that
        patched.setattr(type(two.server.archive), "record", not_there)
        await create_document(two, CONTENTS[1], document_id="a")
    await settled(two)
    for each in replicas:
        assert (await get(each, "a")).sha256 == hashlib.sha256(CONTENTS[0]).digest()
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        await create_document(two, CONTENTS[1], document_id="a")


@pytest.mark.usefixtures("always_fresh")
async def test_the_same_content_stored_by_both_has_what_either_was_asked_for(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on one server: the longer lease counts, and scores aren't lost."""
    one, two = replicas
    kept = await create_document(one, TEXT, document_id="a", lease=seconds(1000), keep_scores=True)
    await until_stored(one, "a")
    with monkeypatch.context() as patched:  # the other has looked before that
        patched.setattr(type(two.server.archive), "record", not_there)
        await create_document(two, TEXT, document_id="a", lease=seconds(10))
    await settled(two)
    for each in replicas:
        found = await get(each, "a")
        assert found.has_scores
        assert found.expire_time.ToMilliseconds() == kept.expire_time.ToMilliseconds()
    [answer, *_] = [each async for each in two.documents.ReadDocumentScores(WHOLE)]
    assert answer.scores.logprobs


async def test_a_lease_that_is_shortened_while_it_is_stored_stays_short(replicas: Replicas) -> None:
    one, two = replicas
    await create_document(one, TEXT, document_id="a", lease=seconds(1000))
    await until_stored(one, "a")
    await create_document(one, TEXT, document_id="a", lease=seconds(2000))
    renewed = await renew(one, "a", 10)
    await settled(one)
    assert (await get(two, "a")).expire_time == renewed.expire_time


async def not_there(*_: object, **__: object) -> None:
    return None


async def test_a_deleted_document_isnt_brought_back(replicas: Replicas) -> None:
    """Not by a replica that has looked it up a moment ago: it looks again before it writes."""
    one, two = replicas
    await create_document(one, TEXT, document_id="a")
    await until_stored(one, "a")
    assert (await get(two, "a")).stored
    await delete(one, "a")
    assert not (await two.documents.ListDocuments(document_pb2.ListDocumentsRequest())).documents
    with refused(grpc.StatusCode.NOT_FOUND):
        await renew(two, "a")
    with refused(grpc.StatusCode.NOT_FOUND):
        await get(two, "a")
    # Its id is free there as well.
    other = await create_document(two, CONTENTS[1], document_id="a")
    assert other.sha256 == hashlib.sha256(CONTENTS[1]).digest()


@pytest.mark.usefixtures("always_fresh")
async def test_deleted_while_the_other_reads(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = replicas
    open_reader = StoreArchive.reader

    def all_have_asked() -> bool:
        return two.metric("document_cache_lookups_total", result="restored") == 4

    async def wait_for_all(archive: StoreArchive, manifest: ContentManifest) -> DataReader:
        await two.until(all_have_asked)  # whoever asks once it is restored finds it in memory
        return await open_reader(archive, manifest)

    monkeypatch.setattr(StoreArchive, "reader", wait_for_all)
    await create_document(one, TEXT, document_id="a")
    await until_stored(one, "a")
    expected = await generate(one, "a")
    reading = [asyncio.create_task(generate(two, "a")) for _ in range(4)]  # restored for all of them, once
    await two.until(all_have_asked)
    await delete(one, "a")
    assert await asyncio.gather(*reading) == [expected] * 4
    for each in replicas:
        with refused(grpc.StatusCode.NOT_FOUND):
            await get(each, "a")
    await two.until_idle()


@pytest.mark.usefixtures("always_fresh")
async def test_renewals_by_both(replicas: Replicas) -> None:
    one, two = replicas
    await create_document(one, TEXT, document_id="a", lease=seconds(10))
    await until_stored(one, "a")
    for lease, each in ((100, two), (1000, one), (2000, two)):
        renewed = await renew(each, "a", lease)
        for other in replicas:
            assert (await get(other, "a")).expire_time == renewed.expire_time


@pytest.mark.usefixtures("always_fresh")
async def test_anything_at_any_time(replicas: Replicas, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever both do at once about one id, the statuses are those of the contract, and at the end both agree."""
    randomness = random.Random(3)
    allowed = (NotFoundError, AlreadyExistsError, AbortedError, FailedPreconditionError)

    async def work(client: AsyncClient, id: str) -> None:
        for _ in range(12):
            with suppress(*allowed):
                match randomness.randrange(6):
                    case 0 | 1:
                        await client.documents.create(randomness.choice(CONTENTS[:2]), document_id=id)
                    case 2:
                        await client.documents.delete(id)
                    case 3:
                        await client.documents.renew(id)
                    case 4:
                        await (await client.documents.get(id)).generate("x", max_tokens=3).collect()
                    case 5:
                        await client.documents.get(id)

    ids = ("a", "b", "c")
    async with AsyncExitStack() as stack:
        addresses = [f"127.0.0.1:{each.server.port}" for each in replicas]
        clients = [await stack.enter_async_context(AsyncClient(address)) for address in addresses]
        await asyncio.gather(*(work(client, id) for client in clients for id in ids for _ in range(2)))
    await settled(*replicas)
    for id in ids:
        said = [await _sha256(each, id) for each in replicas]
        assert said[0] == said[1]
        if said[0] is not None:
            assert await generate(replicas[0], id) == await generate(replicas[1], id)
        await delete(replicas[0], id)
        assert await _sha256(replicas[1], id) is None
    assert "bug" not in caplog.text
    for each in replicas:
        await each.until_idle()


async def _sha256(running: Running, id: str) -> bytes | None:
    """As the document says that is there; the list has to agree. None: there is none, perhaps a broken-off upload."""
    listed = await running.documents.ListDocuments(document_pb2.ListDocumentsRequest())
    sha256 = {document.document_id: document.sha256 for document in listed.documents}.get(id)
    try:
        found = (await get(running, id)).sha256
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
            raise
        found = None
    assert sha256 == found
    return found
