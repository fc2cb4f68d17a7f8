"""InferenceService over the wire: streams, cancellation, deadlines, slow readers."""

import asyncio
import math
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
import torch

from reformer.v1 import document_pb2, inference_pb2_grpc, model_pb2
from reformer.v1 import inference_pb2 as pb
from reformer_core.errors import OutOfMemoryError
from reformer_core.tokenizers import IncrementalDecoder
from reformer_server import convert
from tests.server.conftest import Running
from tests.server.statuses import refused
from tests.server.uploading import create_document, seconds

GREEDY = pb.SamplingParams(temperature=0, max_tokens=5, seed=7)


async def generate(running: Running, timeout: float = 10, **fields: object) -> list[pb.GenerateResponse]:
    call = running.inference.Generate(pb.GenerateRequest(**fields), timeout=timeout)
    return [response async for response in call]


def score_requests(content: bytes, **fields: object) -> list[pb.ScoreRequest]:
    header = pb.ScoreHeader(**{"content_type": document_pb2.CONTENT_TYPE_TEXT, **fields})
    return [
        pb.ScoreRequest(header=header),
        pb.ScoreRequest(chunk=document_pb2.ContentChunk(data=content)),
    ]


async def score(running: Running, requests: list[pb.ScoreRequest]) -> list[pb.ScoreResponse]:
    async def send() -> AsyncIterator[pb.ScoreRequest]:
        for request in requests:
            yield request

    return [response async for response in running.inference.Score(send(), timeout=10)]


async def test_generate_from_a_prompt(running: Running) -> None:
    responses = await generate(running, text="hello", sampling=GREEDY)
    started, finished = responses[0].started, responses[-1].finished
    assert started == pb.GenerateStarted(usage=pb.Usage(prompt_tokens=5), seed=7)
    chunks = [response.tokens for response in responses if response.WhichOneof("event") == "tokens"]
    ids = [id for chunk in chunks for id in chunk.ids]
    assert ids == [ord(c) + 2 for c in "abcde"]
    assert "".join(chunk.text for chunk in chunks) == "abcde"
    assert all(len(chunk.ids) == len(chunk.logprobs) == len(chunk.top) for chunk in chunks)
    assert chunks[0].top[0].tokens[1].id == ids[0] + 1
    assert finished.reason == pb.FINISH_REASON_LENGTH
    assert finished.usage == pb.Usage(prompt_tokens=5, output_tokens=5)
    assert finished.timings.time_to_first_token.ToNanoseconds() > 0
    await running.until_idle()


async def test_generate_from_a_document(running: Running) -> None:
    document = await create_document(running, b"once upon a time")
    for prompt in ({"text": "ab"}, {"token_ids": pb.TokenIds(ids=[5, 6])}, {"text": ""}, {}):
        responses = await generate(running, document_id=document.document_id, sampling=GREEDY, **prompt)
        expected = 2 if any(prompt.values()) else 0
        assert responses[0].started.usage == pb.Usage(cached_tokens=16, prompt_tokens=expected)
        assert responses[-1].finished.usage.output_tokens == 5
    assert running.metric("time_to_first_token_seconds_count", cache="hit") == 4
    assert running.metric("prefill_tokens_total", source="cached") == 64


async def test_server_draws_a_seed(running: Running) -> None:
    seeds = {(await generate(running, text="x"))[0].started.seed for _ in range(3)}
    assert len(seeds) == 3


async def test_generate_without_anything_to_continue(running: Running) -> None:
    for prompt, field in (({}, "prompt"), ({"text": ""}, "text"), ({"token_ids": pb.TokenIds()}, "token_ids")):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
            await generate(running, **prompt)
        assert refusal.field == field


async def test_deleted_document_lives_on_until_its_readers_finish(running: Running) -> None:
    document = await create_document(running, b"once upon a time")
    running.engine.step_seconds = 0.002
    call = running.inference.Generate(pb.GenerateRequest(document_id=document.document_id, sampling=GREEDY))
    assert (await call.read()).WhichOneof("event") == "started"
    await running.documents.DeleteDocument(document_pb2.DeleteDocumentRequest(document_id=document.document_id))
    assert running.engine.documents
    while (response := await call.read()) is not grpc.aio.EOF:
        last = response
    assert last.finished.usage.output_tokens == 5
    await running.until_idle()


async def test_cancel_in_decode_frees_all_pages(running: Running) -> None:
    running.engine.step_seconds = 0.001
    call = running.inference.Generate(pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=10**6)))
    async for response in call:
        if response.WhichOneof("event") == "tokens":
            break
    call.cancel()
    await running.until_idle()
    assert running.metric("cancelled_total", phase="decode") == 1
    assert running.metric("requests_total", method="InferenceService/Generate", code="CANCELLED") == 1


async def test_deadline_frees_all_pages(running: Running) -> None:
    running.engine.step_seconds = 0.001
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        await generate(running, text="x", sampling=pb.SamplingParams(max_tokens=10**6), timeout=0.1)
    await running.until_idle()


async def test_vanished_client_frees_all_pages(running: Running) -> None:
    running.engine.step_seconds = 0.001
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}")
    generate = channel.unary_stream(
        "/reformer.v1.InferenceService/Generate",
        request_serializer=pb.GenerateRequest.SerializeToString,
        response_deserializer=pb.GenerateResponse.FromString,
    )
    call = generate(pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=10**6)))
    await call.read()
    await channel.close()
    await running.until_idle()


async def test_reader_that_stops_is_parked_and_slows_nobody(running: Running) -> None:
    running.engine.memory_bytes = 10**9
    # Without probing, the client's transport takes 64 KiB before its reader does.
    options = (("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}", options)
    stopped = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
        pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=10**6))
    )
    await stopped.read()  # and never again
    [request] = running.engine.requests

    async def generated() -> int:
        """How far the stopped reader's request gets before it is parked."""
        before = -1
        while request.generated != before:
            before = request.generated
            await asyncio.sleep(0.2)
        return before

    parked_at = await generated()
    assert parked_at < 50_000, "it must not be buffered without bound"
    responses = await asyncio.gather(*(generate(running, text="y", sampling=GREEDY) for _ in range(4)))
    assert all(response[-1].finished.usage.output_tokens == 5 for response in responses)
    assert request.generated == parked_at
    while request.generated == parked_at:
        await stopped.read()
    await channel.close()
    await running.until_idle()


async def test_tokens_that_wait_share_a_message(running: Running) -> None:
    responses = await generate(running, text="x", sampling=pb.SamplingParams(max_tokens=2000))
    chunks = [response.tokens for response in responses if response.WhichOneof("event") == "tokens"]
    assert sum(len(chunk.ids) for chunk in chunks) == 2000
    assert len(chunks) < 2000


async def test_error_of_one_request_ends_only_that_one(running: Running) -> None:
    running.engine.request_fault = OutOfMemoryError(100, 10)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refusal:
        await generate(running, text="x")
    assert refusal.metadata["needed_bytes"] == "100"
    assert (await generate(running, text="x", sampling=GREEDY))[-1].HasField("finished")


async def test_score(running: Running) -> None:
    content = b"x" * 300
    responses = await score(running, score_requests(content, total_bytes=300))
    scores = [response.scores for response in responses if response.WhichOneof("event") == "scores"]
    logprobs = np.concatenate([np.frombuffer(block.logprobs, "<f4") for block in scores])
    ids = np.concatenate([np.frombuffer(block.token_ids, "<u4") for block in scores])
    summary = responses[-1].summary
    assert np.isnan(logprobs[0])
    assert len(logprobs) == len(ids) == summary.tokens == summary.content_bytes == 300
    assert (ids == ord("x") + 2).all()
    assert summary.total_logprob == pytest.approx(float(np.nansum(logprobs.astype(np.float64))))
    assert running.metric("scored_tokens_total") == 300
    await running.until_idle()
    assert running.server.uploads.nbytes == 0


async def test_score_sends_blocks_of_bounded_size(running: Running) -> None:
    running.engine.max_tokens = running.engine.memory_bytes = 10**6
    responses = await score(running, score_requests(b"x" * 100_000))
    sizes = [len(response.scores.logprobs) // 4 for response in responses if response.WhichOneof("event") == "scores"]
    assert sizes == [32_768, 32_768, 32_768, 100_000 - 3 * 32_768]


async def test_scores_carry_the_tokens_text(running: Running) -> None:
    content = "Emma – 😀\0\r\n".encode()
    [block] = [r.scores for r in await score(running, score_requests(content)) if r.WhichOneof("event") == "scores"]
    assert block.text == content
    assert np.frombuffer(block.text_lengths, "<u4").tolist() == [1] * len(content)
    ids = np.array([99, 0, 257], "<u4").tobytes()
    requests = score_requests(ids, content_type=document_pb2.CONTENT_TYPE_TOKEN_IDS)
    [block] = [r.scores for r in await score(running, requests) if r.WhichOneof("event") == "scores"]
    assert block.text == b"a\xff"
    assert np.frombuffer(block.text_lengths, "<u4").tolist() == [1, 0, 1]


def test_scores_of_long_tokens_are_split_further() -> None:
    """Tokens of any length don't make a message too large for gRPC's limit of 1 MiB."""
    words = [b"x" * 100, b"y" * 60_000, b"z" * 600_000, b""]
    token_ids = torch.tensor([0] * 40_000 + [1] * 20 + [2, 3])
    logprobs = torch.arange(len(token_ids), dtype=torch.float32)
    blocks = list(convert.score_blocks(7, logprobs, token_ids, IncrementalDecoder(words)))
    assert b"".join(block.text for block in blocks) == b"".join(words[id] for id in token_ids)
    assert all(len(block.text) <= 512 * 1024 or len(block.token_ids) <= 8 for block in blocks)
    start = 7
    for block in blocks:
        assert block.start_token == start
        assert len(block.logprobs) == len(block.token_ids) == len(block.text_lengths)
        assert np.frombuffer(block.text_lengths, "<u4").sum() == len(block.text)
        start += len(block.token_ids) // 4
    assert start == 7 + len(token_ids)
    assert max(len(block.token_ids) // 4 for block in blocks) == 512 * 1024 // 100


async def test_score_continuations(running: Running) -> None:
    document = await create_document(running, b"the sky is")
    continuations = [pb.Continuation(text=" blue"), pb.Continuation(token_ids=pb.TokenIds(ids=[5, 6, 7]))]
    call = running.inference.ScoreContinuations(
        pb.ScoreContinuationsRequest(document_id=document.document_id, continuations=continuations)
    )
    first, second = [response.score async for response in call]
    assert (first.index, second.index) == (0, 1)
    assert first.total_logprob == -5
    assert np.frombuffer(second.token_ids, "<u4").tolist() == [5, 6, 7]
    assert np.frombuffer(second.logprobs, "<f4").tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("continuations", "field"),
    [
        ([], "continuations"),
        ([pb.Continuation(text="a")] * 1025, "continuations"),
        ([pb.Continuation(text="a"), pb.Continuation(text="")], "continuations[1]"),
        ([pb.Continuation()], "continuations[0]"),
        ([pb.Continuation(token_ids=pb.TokenIds(ids=[258]))], "continuations[0].token_ids.ids"),
        ([pb.Continuation(text="x" * 65_537)], "continuations[0]"),
    ],
)
async def test_bad_continuations(running: Running, continuations: list[pb.Continuation], field: str) -> None:
    document = await create_document(running, b"the sky is")
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        request = pb.ScoreContinuationsRequest(document_id=document.document_id, continuations=continuations)
        async for _ in running.inference.ScoreContinuations(request):
            pass
    assert refusal.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", math.nan),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.nan),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("min_p", -0.5),
        ("min_p", math.nan),
        ("max_tokens", 0),
        ("top_logprobs", 21),
        ("stop", [""]),
        ("stop", ["a"] * 17),
        ("stop_ids", [2**31]),
    ],
)
async def test_bad_sampling_parameters(running: Running, field: str, value: object) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await generate(running, text="x", sampling=pb.SamplingParams(**{field: value}))
    assert refusal.field == f"sampling.{field}"
    assert not running.engine.requests


async def test_prompt_outside_the_vocabulary(running: Running) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await generate(running, token_ids=pb.TokenIds(ids=[1, 258]))
    assert refusal.field == "token_ids.ids"


async def test_prompt_longer_than_the_rest(running: Running) -> None:
    document = await create_document(running, b"x" * 4000)
    with refused(grpc.StatusCode.OUT_OF_RANGE) as refusal:
        await generate(running, document_id=document.document_id, text="y" * 97)
    assert refusal.reason == "TOO_MANY_TOKENS"
    assert refusal.metadata == {"tokens": "4097", "max_tokens": "4096"}


async def test_unknown_document(running: Running) -> None:
    with refused(grpc.StatusCode.NOT_FOUND):
        await generate(running, document_id="nobody", text="x")


async def test_expired_document_is_told_from_an_unknown_one(running: Running) -> None:
    document = await create_document(running, b"x", lease=seconds(0.01))
    await asyncio.sleep(0.02)
    with refused(grpc.StatusCode.NOT_FOUND) as refusal:
        await generate(running, document_id=document.document_id, text="x")
    assert refusal.reason == "DOCUMENT_EXPIRED"


async def test_routing_metadata_that_contradicts(running: Running) -> None:
    document = await create_document(running, b"x")
    for fields in ({"document_id": document.document_id}, {}):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
            request = pb.GenerateRequest(text="x", **fields)
            async for _ in running.inference.Generate(request, metadata=(("x-document-id", "other"),)):
                pass
        assert refusal.field == "document_id"
    metadata = (("x-document-id", document.document_id),)
    request = pb.GenerateRequest(document_id=document.document_id, sampling=GREEDY)
    assert [response async for response in running.inference.Generate(request, metadata=metadata)]


async def test_model_service(running: Running) -> None:
    model = await running.model.GetModel(model_pb2.GetModelRequest())
    assert (model.name, model.max_tokens, model.vocab_size) == ("tiny", 4096, 258)
    assert (model.device, model.dtype, model.tokenizer, model.num_hashes) == ("cpu", "float32", "bytes", 1)
    assert len(model.weights_digest) == 32
    assert model.max_lease_seconds == 7 * 86400
    text = "naïve – 日本"
    ids = (await running.model.Tokenize(model_pb2.TokenizeRequest(text=text))).ids
    assert len(ids) == len(text.encode())
    assert (await running.model.Detokenize(model_pb2.DetokenizeRequest(token_ids=pb.TokenIds(ids=ids)))).text == text
    load = await running.model.GetLoad(model_pb2.GetLoadRequest())
    assert load.total_page_bytes == running.engine.memory_bytes
    assert not load.draining


async def test_tokenize_stays_below_a_message(running: Running) -> None:
    for text, field in (("é" * (256 << 10), "text"), ("x" * ((512 << 10) + 1), "text")):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
            await running.model.Tokenize(model_pb2.TokenizeRequest(text=text))
        assert refusal.field == field
    for ids in ([258], [5] * 131_073):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
            await running.model.Detokenize(model_pb2.DetokenizeRequest(token_ids=pb.TokenIds(ids=ids)))
        assert refusal.field == "token_ids.ids"


async def test_message_over_one_mebibyte_is_refused(running: Running) -> None:
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await running.model.Tokenize(model_pb2.TokenizeRequest(text="x" * (1 << 20)))
