"""The server on the real engine: what the fake one can't vouch for."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import torch
from google.rpc import error_details_pb2

from reformer.v1 import document_pb2
from reformer.v1 import inference_pb2 as pb
from reformer_core import Engine, MemoryPlan, Request
from reformer_core.requests import PrefillRequest
from reformer_server import ServedModel
from tests.server.conftest import Running, running_server
from tests.server.statuses import refused
from tests.server.uploading import chunk, create, create_document, header

MAX_RUNNING = 4
TEXT = bytes(range(32, 127)) * 40  # 3,800 tokens


def make_engine(model: ServedModel, *, documents: float = 4, max_waiting: int = 8) -> Engine:
    """An engine with room for so many documents of all positions."""
    memory_plan = MemoryPlan(model.model.config, model.model.dtype, model.max_tokens)
    memory_bytes = memory_plan.fixed_bytes(MAX_RUNNING) + int(documents * memory_plan.page_bytes)
    return Engine(
        model.model, model.tokenizer, memory_bytes=memory_bytes, max_running=MAX_RUNNING, max_waiting=max_waiting
    )


@pytest.fixture
async def real(served_model: ServedModel) -> AsyncIterator[Running]:
    async with running_server(served_model, make_engine(served_model)) as running:
        yield running
        await running.until_idle()
        assert running.engine.pool.free_pages == running.engine.pool.total_pages
        assert running.engine.table.free_rows == MAX_RUNNING


async def generate(running: Running, **fields: object) -> list[pb.GenerateResponse]:
    request = pb.GenerateRequest(**fields)  # type: ignore[arg-type]
    return [response async for response in running.inference.Generate(request, timeout=20)]


async def delete(running: Running, id: str) -> None:
    await running.documents.DeleteDocument(document_pb2.DeleteDocumentRequest(document_id=id))


async def test_document_is_read_once_and_continued_twice(real: Running) -> None:
    document = await create_document(real, TEXT, document_id="a", keep_scores=True)
    assert document.tokens == len(TEXT)
    assert document.memory_bytes > 0
    sampling = pb.SamplingParams(temperature=0, max_tokens=8)
    first, second = [await generate(real, document_id="a", text="x", sampling=sampling) for _ in range(2)]
    tokens = [[id for response in responses for id in response.tokens.ids] for responses in (first, second)]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 8
    assert first[-1].finished.timings.decode.ToNanoseconds() > 0
    await delete(real, "a")


async def test_deleted_document_lives_on_until_its_readers_finish(real: Running) -> None:
    await create_document(real, TEXT, document_id="a")
    sampling = pb.SamplingParams(max_tokens=50)
    calls = [real.inference.Generate(pb.GenerateRequest(document_id="a", sampling=sampling)) for _ in range(6)]
    for call in calls:
        await call.read()
    await delete(real, "a")
    for call in calls:
        last = None
        while (response := await call.read()) is not grpc.aio.EOF:
            last = response
        assert last is not None
        assert last.finished.usage.output_tokens == 50


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_cancel_frees_all_pages(real: Running, phase: str) -> None:
    if phase == "prefill":
        call = real.documents.CreateDocument()
        await call.write(header(TEXT, document_id="a"))
        await call.write(chunk(TEXT))
        await call.done_writing()
        await real.until(lambda: real.server.engine.load.used_page_bytes > 0)
    else:
        call = real.inference.Generate(pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=4000)))
        while (await call.read()).WhichOneof("event") != "tokens":
            pass
    call.cancel()
    await real.until_idle()
    assert real.metric("cancelled_total", phase=phase) == 1


async def test_deadline_passes(real: Running) -> None:
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        request = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=4000))
        async for _ in real.inference.Generate(request, timeout=0.1):
            pass


async def test_no_room_for_another_document(served_model: ServedModel) -> None:
    async with running_server(served_model, make_engine(served_model, documents=1.2)) as running:
        await create_document(running, TEXT, document_id="a")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
            await create_document(running, TEXT[::-1], document_id="b")
        needed, free = int(refusal.metadata["needed_bytes"]), int(refusal.metadata["free_bytes"])
        assert needed > free > 0
        assert refusal.metadata["fits_when_idle"] == "True"
        await delete(running, "a")
        responses = await create(running, [header(TEXT[::-1], document_id="b")])
        assert responses[0].accepted.resume_offset == len(TEXT), "what was uploaded is still there"
        assert responses[-1].document.tokens == len(TEXT)


@pytest.mark.parametrize("place", ["lsh_pass.attend_slots", "extend.extend_slice", "decode_graphs.DecodeSteps.take"])
async def test_the_device_has_no_memory_left(real: Running, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Reading a document, its prompt, or decoding: that call may be made again, and the next one succeeds."""

    def allocate_too_much(*_: object, **__: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    async def read_and_continue(id: str, text: bytes) -> None:
        await create_document(real, text, document_id=id)
        await generate(real, document_id=id, text="x", sampling=pb.SamplingParams(max_tokens=5))

    with monkeypatch.context() as patch:
        patch.setattr(f"reformer_core.{place}", allocate_too_much)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
            await read_and_continue("a", TEXT)
    assert refusal.reason == "OUT_OF_MEMORY"
    assert refusal.has(error_details_pb2.RetryInfo)
    await read_and_continue("b", TEXT[::-1])
    for id in ("a", "b"):
        await delete(real, id)


async def test_a_request_that_is_over_waits_for_no_garbage_collection(
    real: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds tensors as long as its text, and collections are rare in a process with many objects."""
    requests: list[weakref.ref[Request]] = []
    submit = Engine.submit_score

    def noted(*args: Any, **kwargs: Any) -> Request:
        request = submit(*args, **kwargs)
        requests.append(weakref.ref(request))
        return request

    async def sent() -> AsyncIterator[pb.ScoreRequest]:
        yield pb.ScoreRequest(header=pb.ScoreHeader(content_type=document_pb2.CONTENT_TYPE_TEXT))
        yield pb.ScoreRequest(chunk=document_pb2.ContentChunk(data=TEXT))

    monkeypatch.setattr(Engine, "submit_score", noted)
    gc.collect()
    gc.disable()
    try:
        finished, left = real.inference.Score(sent()), real.inference.Score(sent())
        await left.read()
        left.cancel()
        async for _ in finished:
            pass
        await real.until(lambda: len(requests) == 2 and not any(request() for request in requests))
    finally:
        gc.enable()


async def test_queue_is_bounded(served_model: ServedModel) -> None:
    async with running_server(served_model, make_engine(served_model, max_waiting=MAX_RUNNING)) as running:
        endless = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=1000))
        calls = [running.inference.Generate(endless) for _ in range(MAX_RUNNING)]
        await running.until(lambda: running.server.engine.load.running == MAX_RUNNING)
        calls += [running.inference.Generate(endless) for _ in range(MAX_RUNNING)]
        await running.until(lambda: running.server.engine.load.waiting == MAX_RUNNING)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
            await generate(running, text="x")
        assert refusal.reason == "QUEUE_FULL"
        for call in calls:
            call.cancel()
        await running.until_idle()


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"text": "x", "sampling": pb.SamplingParams(stop_ids=[258])}, "INVALID_ARGUMENT", "sampling.stop_ids"),
        ({"text": "x" * 4097}, "OUT_OF_RANGE", None),
        ({"document_id": "a", "text": "x" * 500}, "OUT_OF_RANGE", None),
    ],
)
async def test_what_the_engine_refuses(real: Running, fields: dict[str, object], code: str, field: str | None) -> None:
    await create_document(real, TEXT, document_id="a")
    with refused(getattr(grpc.StatusCode, code)) as refusal:
        await generate(real, **fields)
    assert field is None or refusal.field == field
    await delete(real, "a")


async def test_generation_ends_where_the_positions_do(real: Running) -> None:
    responses = await generate(real, text="x" * 4090, sampling=pb.SamplingParams(max_tokens=100))
    finished = responses[-1].finished
    assert finished.reason == pb.FINISH_REASON_POSITIONS_EXHAUSTED
    assert finished.usage.output_tokens in (6, 7)


async def test_many_at_once(real: Running) -> None:
    """Documents come and go while others are continued, and calls are cancelled in between."""
    sampling = pb.SamplingParams(max_tokens=20)

    async def one(index: int) -> None:
        id = f"d{index}"
        await create_document(real, TEXT[: 200 + 50 * index], document_id=id)
        responses = await generate(real, document_id=id, text="x", sampling=sampling)
        assert responses[-1].finished.usage.output_tokens == 20
        call = real.inference.Generate(pb.GenerateRequest(document_id=id, sampling=sampling))
        await call.read()
        call.cancel()
        await delete(real, id)

    for start in range(0, 12, 4):
        await asyncio.gather(*(one(index) for index in range(start, start + 4)))


async def test_a_reading_that_cant_be_over_in_time_isnt_begun(real: Running) -> None:
    await create_document(real, TEXT, document_id="a")
    await delete(real, "a")
    [speed] = real.engine._scheduler._pace._tokens_per_second.values()
    real.engine._scheduler._pace._tokens_per_second[PrefillRequest] = speed / 1e6
    await real.server.engine.call(lambda engine: None)  # it has looked at itself again
    computed = real.metric("prefill_tokens_total", source="computed")
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED) as refusal:
        await create(real, [header(TEXT, document_id="b"), chunk(TEXT)], timeout=60)
    assert "reading 3,800 tokens takes at least" in refusal.message
    assert real.metric("prefill_tokens_total", source="computed") == computed
    responses = await create(real, [header(TEXT, document_id="b")], timeout=None)  # the content is there already
    assert responses[-1].document.tokens == len(TEXT)
    await delete(real, "b")
