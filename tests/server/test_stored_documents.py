"""Documents that outlive memory and process, through the real engine and a store in a folder."""

import asyncio
import errno
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from reformer.v1 import document_pb2
from reformer.v1 import inference_pb2 as pb
from reformer_core import ReformerModel
from reformer_server import ServedModel
from reformer_server.cli import announcement, json_announcement
from reformer_server.settings import SettingsError
from reformer_server.store.data import Shape
from reformer_server.store.manifest import ContentManifest, seal, unseal
from tests.server.conftest import Running, running_server
from tests.server.statuses import refused
from tests.server.test_real_engine import TEXT, make_engine
from tests.server.uploading import create_document, seconds

GREEDY = pb.SamplingParams(temperature=0, max_tokens=8)
CONTENTS = [TEXT, TEXT[::-1], TEXT[5:] + TEXT[:5]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def serve(served_model: ServedModel, folder: Path) -> Callable[..., Any]:
    """Starts a server on the folder; each has a memory of its own."""

    @asynccontextmanager
    async def serve(*, model: ServedModel = served_model, documents: float = 4, **settings: Any) -> AsyncIterator[Any]:
        engine = make_engine(model, documents=documents)
        async with running_server(model, engine, **{"store": str(folder), **settings}) as running:
            yield running

    return serve


async def get(running: Running, id: str) -> document_pb2.Document:
    return (await running.documents.GetDocument(document_pb2.GetDocumentRequest(document_id=id))).document


async def until_stored(running: Running, *ids: str) -> None:
    async with asyncio.timeout(10):
        for id in ids:
            while not (await get(running, id)).stored:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def generate(running: Running, id: str) -> list[int]:
    request = pb.GenerateRequest(document_id=id, text="x", sampling=GREEDY)
    responses = [response async for response in running.inference.Generate(request, timeout=20)]
    return [token for response in responses for token in response.tokens.ids]


async def scores(running: Running, id: str) -> bytes:
    request = document_pb2.ReadDocumentScoresRequest(document_id=id)
    return b"".join([block.scores.logprobs async for block in running.documents.ReadDocumentScores(request)])


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def data_files(folder: Path) -> list[Path]:
    return files(folder, "*/contents/*.safetensors")


async def test_restart_gives_the_same_tokens_and_scores(serve: Callable[..., Any], folder: Path) -> None:
    async with serve() as running:
        created = await create_document(running, TEXT, document_id="a", keep_scores=True)
        assert created.stored, "the client is told when the store has it"
        cold = await generate(running, "a"), await scores(running, "a")
        hit = await generate(running, "a"), await scores(running, "a")
    assert len(data_files(folder)) == 1
    async with serve() as running:
        found = await get(running, "a")
        assert found.stored
        assert (found.tokens, found.content_bytes, found.expire_time) == (len(TEXT), len(TEXT), created.expire_time)
        assert running.server.engine.load.used_page_bytes == 0
        restored = await generate(running, "a"), await scores(running, "a")
        assert running.metric("document_cache_lookups_total", result="restored") == 1
        assert running.metric("prefill_tokens_total", source="restored") == len(TEXT)
        assert running.metric("prefill_tokens_total", source="computed") == 1  # the prompt
        assert running.metric("time_to_first_token_seconds_count", cache="restored") == 1
    assert cold == hit == restored


async def test_a_fresh_replica_lists_renews_and_deletes(serve: Callable[..., Any]) -> None:
    async with serve() as one, serve() as two:
        await create_document(one, TEXT, document_id="a", lease=seconds(100))
        await until_stored(one, "a")
        listed = await two.documents.ListDocuments(document_pb2.ListDocumentsRequest())
        assert [document.document_id for document in listed.documents] == ["a"]
        request = document_pb2.RenewDocumentRequest(document_id="a", lease=seconds(1000))
        renewed = await two.documents.RenewDocument(request)
        assert renewed.document.expire_time.seconds - listed.documents[0].expire_time.seconds >= 899
        await two.documents.DeleteDocument(document_pb2.DeleteDocumentRequest(document_id="a"))
        with refused(grpc.StatusCode.NOT_FOUND):
            await get(two, "a")
    async with serve() as three:
        with refused(grpc.StatusCode.NOT_FOUND):
            await get(three, "a")


async def test_the_same_content_again_is_restored_not_computed(serve: Callable[..., Any]) -> None:
    async with serve() as running:
        await create_document(running, TEXT, document_id="a")
        await until_stored(running, "a")
    async with serve() as running:
        document = await create_document(running, TEXT, document_id="b")
        assert document.cached
        assert running.metric("prefill_tokens_total", source="computed") == 0
        assert running.metric("prefill_tokens_total", source="restored") == len(TEXT)
        with_scores = await create_document(running, TEXT, document_id="c", keep_scores=True)
        assert not with_scores.cached  # what is stored has none
        await until_stored(running, "b", "c")
    async with serve() as running:
        assert len(await scores(running, "c")) == 4 * len(TEXT)


async def test_memory_is_made_for_one_more_document(serve: Callable[..., Any]) -> None:
    """Two fit: the one that was used longest ago goes, and comes back when it is asked for."""
    async with serve(documents=2.5) as running:
        for id, content in zip("abc", CONTENTS, strict=True):
            await create_document(running, content, document_id=id)
            await until_stored(running, id)
            if id == "b":
                await generate(running, "a")
        assert running.metric("document_cache_evictions_total", reason="memory") == 1
        assert running.metric("document_cache_documents", tier="memory") == 2
        await generate(running, "a")
        await generate(running, "c")
        assert running.metric("document_cache_lookups_total", result="restored") == 0
        await generate(running, "b")
        assert running.metric("document_cache_lookups_total", result="restored") == 1


async def test_a_document_in_use_is_never_evicted(serve: Callable[..., Any]) -> None:
    async with serve(documents=1.2) as running:
        await create_document(running, TEXT, document_id="a")
        await until_stored(running, "a")
        endless = pb.GenerateRequest(document_id="a", sampling=pb.SamplingParams(max_tokens=200))
        call = running.inference.Generate(endless)
        await call.read()
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
            await create_document(running, CONTENTS[1], document_id="b")
        assert refusal.reason == "OUT_OF_MEMORY"
        call.cancel()
        await running.until(lambda: running.server.engine.load.running == 0)
        await create_document(running, CONTENTS[1], document_id="c")
        assert running.metric("document_cache_evictions_total", reason="memory") == 1


async def test_expired_documents_go_first(serve: Callable[..., Any]) -> None:
    async with serve(documents=2.5) as running:
        await create_document(running, CONTENTS[0], document_id="a")
        await create_document(running, CONTENTS[1], document_id="b", lease=seconds(0.5))
        await until_stored(running, "a")
        await asyncio.sleep(0.5)
        await create_document(running, CONTENTS[2], document_id="c")
        assert running.metric("document_cache_evictions_total", reason="memory") == 0
        assert running.metric("document_cache_evictions_total", reason="expired") == 1
        with refused(grpc.StatusCode.NOT_FOUND) as refusal:
            await get(running, "b")
        assert refusal.reason == "DOCUMENT_EXPIRED"


async def test_a_lease_that_cant_be_honoured_is_refused(serve: Callable[..., Any]) -> None:
    async with serve() as running:
        size = (await create_document(running, CONTENTS[0], document_id="a")).memory_bytes
        await until_stored(running, "a")
    async with serve(store_quota_bytes=int(1.5 * size)) as running:
        await running.until(lambda: running.metric("document_cache_bytes", tier="store") > 0)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
            await create_document(running, CONTENTS[1], document_id="b")
        assert refusal.reason == "STORE_FULL"
        assert refusal.has(error_details_pb2.QuotaFailure)
        assert refusal.metadata["needed_bytes"] == str(size)
        assert int(refusal.metadata["free_bytes"]) < size
        await running.documents.DeleteDocument(document_pb2.DeleteDocumentRequest(document_id="a"))
        await create_document(running, CONTENTS[1], document_id="c")


@pytest.mark.parametrize("damage", ["data", "data gone", "manifest", "content gone", "id"])
async def test_damage_is_told_and_mended_by_the_next_upload(
    serve: Callable[..., Any], folder: Path, damage: str
) -> None:
    async with serve() as running:
        await create_document(running, TEXT, document_id="a")
        expected = await generate(running, "a")
        await until_stored(running, "a")
    [data] = data_files(folder)
    [manifest] = files(folder, "*/contents/*.json")
    [record] = files(folder, "*/ids/*.json")
    if damage == "data":
        content = bytearray(data.read_bytes())
        content[-100] ^= 1
        data.write_bytes(content)
    elif damage == "data gone":
        data.unlink()
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif damage == "content gone":
        manifest.unlink()
    else:
        record.write_bytes(b"\0" * 100)
    async with serve() as running:
        with refused(grpc.StatusCode.DATA_LOSS) as refusal:
            await generate(running, "a")
        assert refusal.reason == "DOCUMENT_DAMAGED"
        with refused(grpc.StatusCode.NOT_FOUND):
            await generate(running, "a")
        await running.until_idle()
        await create_document(running, TEXT, document_id="a")
        assert await generate(running, "a") == expected
        await until_stored(running, "a")


@pytest.mark.parametrize("change", [-1, 1])
async def test_a_forged_number_of_pages_is_damage(serve: Callable[..., Any], folder: Path, change: int) -> None:
    """All digests are right, and yet no document can come of it: the engine isn't left waiting for pages."""
    async with serve() as running:
        await create_document(running, TEXT, document_id="a")
        await until_stored(running, "a")
    [data] = data_files(folder)
    [path] = files(folder, "*/contents/*.json")
    true = unseal(path.read_bytes(), ContentManifest)
    shape = Shape(true.tokens, true.has_scores, true.pages, true.page_bytes)
    forged = replace(shape, pages=true.pages + change)
    body = data.read_bytes()[len(shape.header) :] + bytes(true.page_bytes)
    content = (forged.header + body)[: forged.nbytes]
    data.write_bytes(content)
    facts = {"pages": forged.pages, "data_bytes": len(content), "data_sha256": hashlib.sha256(content).hexdigest()}
    path.write_bytes(seal(true.model_copy(update=facts)))
    async with serve() as running:
        with refused(grpc.StatusCode.DATA_LOSS):
            await generate(running, "a")
        await running.until_idle()


async def test_another_models_document_is_refused(serve: Callable[..., Any], served_model: ServedModel) -> None:
    async with serve() as running:
        await create_document(running, TEXT, document_id="a")
        await until_stored(running, "a")
    config = replace(served_model.model.config, hash_seed=7)
    other = ServedModel("other", ReformerModel(config).eval(), served_model.tokenizer)
    other.model.load_state_dict(served_model.model.state_dict())
    async with serve(model=other) as running:
        with refused(grpc.StatusCode.FAILED_PRECONDITION) as refusal:
            await generate(running, "a")
        assert refusal.reason == "OTHER_MODEL"
        assert refusal.has(error_details_pb2.PreconditionFailure)
        document = await create_document(running, TEXT, document_id="a")
        assert not document.cached
        await until_stored(running, "a")


async def test_store_gone_and_back(serve: Callable[..., Any], folder: Path) -> None:
    async with serve() as running:
        await create_document(running, CONTENTS[0], document_id="a")
        await until_stored(running, "a")
        away = shutil.move(folder, folder.with_name("away"))
        document = await create_document(running, CONTENTS[1], document_id="b")
        assert not document.stored
        assert len(await generate(running, "b")) == 8
        assert len(await generate(running, "a")) == 8  # it is in memory
        for request in (
            running.documents.ListDocuments(document_pb2.ListDocumentsRequest()),
            running.documents.DeleteDocument(document_pb2.DeleteDocumentRequest(document_id="c")),
            get(running, "c"),
        ):
            with refused(grpc.StatusCode.UNAVAILABLE) as refusal:
                await request
            assert refusal.reason == "STORE_UNAVAILABLE"
            assert str(folder) not in refusal.message
        await running.until(lambda: running.metric("document_store_errors_total") > 4)
        shutil.move(away, folder)
        await until_stored(running, "b")
    async with serve() as running:
        assert len(await generate(running, "a")) == len(await generate(running, "b")) == 8


async def test_a_disk_that_fills_up_costs_no_document(
    serve: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    async with serve() as running:
        monkeypatch.setattr("os.fsync", sync)
        await create_document(running, TEXT, document_id="a")
        await running.until(lambda: running.metric("document_store_errors_total") > 0)
        assert len(await generate(running, "a")) == 8
        assert not (await get(running, "a")).stored
        full = False
        await until_stored(running, "a")
    assert not files(folder, "**/*.unfinished")


async def test_what_is_deleted_while_it_is_written_is_gone(serve: Callable[..., Any], folder: Path) -> None:
    async with serve() as running:
        for _ in range(20):
            await create_document(running, TEXT, document_id="a")
            await running.documents.DeleteDocument(document_pb2.DeleteDocumentRequest(document_id="a"))
        await running.until_idle()
    assert not files(folder, "*/ids/*")
    assert not files(folder, "**/*.unfinished")


async def test_stopping_waits_for_what_isnt_stored_yet(serve: Callable[..., Any], folder: Path) -> None:
    async with serve() as running:
        for id, content in zip("abc", CONTENTS, strict=True):
            await create_document(running, content, document_id=id)
    assert len(data_files(folder)) == 3
    async with serve() as running:
        for id in "abc":
            assert len(await generate(running, id)) == 8


async def test_many_calls_wait_for_one_restore(serve: Callable[..., Any]) -> None:
    async with serve() as running:
        await create_document(running, TEXT, document_id="a")
        await until_stored(running, "a")
    async with serve() as running:
        first, *others = await asyncio.gather(*(generate(running, "a") for _ in range(8)))
        assert all(other == first for other in others)
        assert running.metric("prefill_tokens_total", source="restored") == len(TEXT)


async def test_the_start_says_where_documents_are_kept(serve: Callable[..., Any], folder: Path) -> None:
    async with serve() as running:
        assert f"store    {folder}\n" in announcement(running.server)
        assert json.loads(json_announcement(running.server))["store"] == str(folder)
    async with serve(store="none") as running:
        assert "store    none: documents end with this process\n" in announcement(running.server)
        assert json.loads(json_announcement(running.server))["store"] is None


async def test_a_store_that_cant_be_used_is_named_at_start(served_model: ServedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match=r"store: .*file/store can't be used: .*Not a directory.* --store"):
        async with running_server(served_model, make_engine(served_model), store=str(tmp_path / "file" / "store")):
            pass


async def test_a_full_backup_of_the_folder_is_a_store(serve: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    async with serve() as running:
        await create_document(running, TEXT, document_id="a")
        await until_stored(running, "a")
    copy = shutil.copytree(folder, tmp_path / "copy")
    async with serve(store=str(copy)) as running:
        assert len(await generate(running, "a")) == 8
