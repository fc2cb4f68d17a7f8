"""Every method of both clients gives what the server said."""

import dataclasses
import inspect
import math
from datetime import UTC, datetime

import pytest

import reformer_client
from reformer_client import (
    AsyncClient,
    Client,
    ContentType,
    FinishReason,
    NotFoundError,
    Progress,
    Scores,
    Token,
    TopToken,
    Usage,
)
from reformer_client.client import Document, Documents, DocumentScoreStream, GenerationStream, ScoreStream
from reformer_client.document import AsyncDocument
from reformer_client.documents import AsyncDocuments
from reformer_client.streams import AsyncDocumentScoreStream, AsyncGenerationStream, AsyncScoreStream
from tests.client.fake_server import FakeServer

TEXT = "Natasha"


def check_scores(scores: Scores, text: str) -> None:
    expected = [-byte / 64 for byte in text.encode()]
    assert scores.tokens == len(text)
    assert math.isnan(scores.logprobs[0])
    assert scores.logprobs[1:].tolist() == expected[1:]
    assert scores.token_ids.tolist() == list(text.encode())
    assert scores.text == text.encode()
    assert scores.text_lengths.tolist() == [1] * len(text)
    assert scores.total_logprob == pytest.approx(sum(expected[1:]))
    assert scores.perplexity == pytest.approx(math.exp(-sum(expected[1:]) / (len(text) - 1)))
    assert scores.bits_per_byte == pytest.approx(-sum(expected[1:]) / math.log(2) / len(text))
    assert scores.logprobs.format == "f"
    assert scores.logprobs.readonly


def test_documents(client: Client, server: FakeServer) -> None:
    seen: list[Progress] = []
    with client.documents.create(
        TEXT, document_id="war", lease_seconds=60, keep_scores=True, on_progress=seen.append
    ) as document:
        assert server.uploads["war"] == TEXT.encode()
        assert document.id == "war"
        assert document.tokens == document.content_bytes == len(TEXT)
        assert document.memory_bytes == 10 * len(TEXT)
        assert document.content_type is ContentType.TEXT
        assert document.has_scores
        assert not document.cached
        assert document.info.create_time == datetime.fromtimestamp(1_700_000_000, UTC)
        assert document.expire_time == datetime.fromtimestamp(1_700_000_060, UTC)
        assert [progress.fraction for progress in seen] == [0, pytest.approx(3 / 7), 1]
        assert seen[-1] == Progress(processed_tokens=7, total_tokens=7, elapsed_seconds=1)

        check_scores(document.scores(), TEXT)
        part = document.scores(start=2, end=6)
        assert (part.start_token, part.token_ids.tolist()) == (2, list(b"tash"))
        assert part.perplexity == pytest.approx(math.exp(sum(b"tash") / 64 / 4))
        assert part.bits_per_byte == pytest.approx(sum(b"tash") / 64 / math.log(2) / 4)
        assert [block.start_token for block in document.stream_scores()] == [0, 4]

        ranked = document.score_continuations(["ab", [1, 2, 3]])
        assert [score.index for score in ranked] == [0, 1]
        assert ranked[0].total_logprob == pytest.approx(-(97 + 98) / 64)
        assert ranked[1].token_ids.tolist() == [1, 2, 3]

        document.renew(lease_seconds=5)
        assert document.expire_time == datetime.fromtimestamp(1_800_000_005, UTC)
        assert client.documents.renew("war").expire_time == datetime.fromtimestamp(1_800_000_000, UTC)
        assert client.documents.get("war").info == dataclasses.replace(
            document.info, expire_time=datetime.fromtimestamp(1_800_000_000, UTC)
        )
        assert "war" in repr(document)
    assert server.documents == {}
    client.documents.delete("war")  # once more is no error
    with pytest.raises(NotFoundError, match="no document 'war'"):
        client.documents.get("war")


async def test_documents_async(async_client: AsyncClient, server: FakeServer) -> None:
    seen: list[Progress] = []

    async def on_progress(progress: Progress) -> None:
        seen.append(progress)

    async with async_client.documents.create(TEXT, keep_scores=True, on_progress=on_progress) as document:
        assert len(seen) == 3
        check_scores(await document.scores(), TEXT)
        assert [block.start_token async for block in document.stream_scores(1, 7)] == [1, 5]
        assert [score.index for score in await document.score_continuations(["ab"])] == [0]
        assert (await document.generate("x", max_tokens=2).collect()).text == "ab"
        await document.renew()
        assert document.info == (await async_client.documents.get(document.id)).info
        assert (await async_client.documents.renew(document.id)).id == document.id
    assert server.documents == {}
    kept = await async_client.documents.create(TEXT, document_id="kept")
    assert set(server.documents) == {"kept"}
    async with kept:
        pass
    assert server.documents == {}
    await async_client.documents.delete("kept")


def test_a_document_lives_on_without_a_with_block(client: Client, server: FakeServer) -> None:
    document = client.documents.create(TEXT)
    assert len(document.id) == 36  # a UUID
    del document
    assert len(server.documents) == 1


def test_list_goes_through_the_pages(client: Client, server: FakeServer) -> None:
    ids = [client.documents.create(TEXT, document_id=f"d{i}").id for i in range(5)]
    documents = list(client.documents.list(page_size=2))
    assert [document.id for document in documents] == ids
    assert server.count("ListDocuments") == 3
    assert documents[0].generate(max_tokens=3).text() == "abc"
    assert next(client.documents.list(page_size=1)).id == "d0"
    assert server.count("ListDocuments") == 4  # the next page is fetched when it is needed


async def test_list_async(async_client: AsyncClient) -> None:
    for i in range(3):
        await async_client.documents.create(TEXT, document_id=f"d{i}")
    assert [document.id async for document in async_client.documents.list(page_size=2)] == ["d0", "d1", "d2"]


def test_generate(client: Client, server: FakeServer) -> None:
    seen: list[Progress] = []
    stream = client.generate(
        "Anna",
        on_progress=seen.append,
        max_tokens=4,
        temperature=0.5,
        repetition_penalty=1.5,
        top_k=3,
        top_p=0.25,
        min_p=0.125,
        seed=9,
        stop="\n",
        stop_ids=[7],
        top_logprobs=2,
    )
    assert stream.started is stream.finished is stream.usage is None
    first = next(stream)
    assert stream.started is not None
    assert stream.started.seed == 7
    assert stream.usage == Usage(cached_tokens=3, prompt_tokens=4, output_tokens=0)
    alternatives = (TopToken(1, -0.25),) * 2
    # Two tokens came in one chunk: its text goes with the second one.
    assert [first, *stream] == [
        Token(97, "", -0.5, alternatives),
        Token(98, "ab", -0.5, alternatives),
        Token(99, "c", -0.5, alternatives),
        Token(100, "d", -0.5, alternatives),
    ]
    assert stream.finished is not None
    assert stream.finished.finish_reason is FinishReason.LENGTH
    assert stream.finished.timings.prefill_seconds == 0.5
    assert stream.finished.timings.first_token_seconds == 1
    assert stream.usage == Usage(cached_tokens=3, prompt_tokens=4, output_tokens=4)
    assert [progress.fraction for progress in seen] == [0.5]
    request = server.requests[-1]
    assert request.text == "Anna"
    assert not request.HasField("document_id")
    sampling = request.sampling
    assert (sampling.temperature, sampling.repetition_penalty, sampling.top_k, sampling.top_p) == (0.5, 1.5, 3, 0.25)
    assert (sampling.min_p, sampling.seed, sampling.max_tokens, sampling.top_logprobs) == (0.125, 9, 4, 2)
    assert (list(sampling.stop), list(sampling.stop_ids)) == (["\n"], [7])


def test_what_is_left_out_is_left_to_the_server(client: Client, server: FakeServer) -> None:
    client.generate([65, 66]).text()
    request = server.requests[-1]
    assert list(request.token_ids.ids) == [65, 66]
    assert request.sampling.ListFields() == []


def test_collect(client: Client) -> None:
    generation = client.generate("x", max_tokens=3).collect()
    assert (generation.text, generation.ids, generation.logprobs) == ("abc", (97, 98, 99), (-0.5,) * 3)
    assert generation.finish_reason is FinishReason.LENGTH
    assert generation.usage.output_tokens == 3
    stream = client.generate("x", max_tokens=5)
    next(stream)
    assert stream.text() == "abcde"  # what was not iterated over yet: the first token's text comes with the second


async def test_generate_async(async_client: AsyncClient) -> None:
    stream = async_client.generate("x", max_tokens=4, stop=["a", "b"])
    assert [token.id async for token in stream] == [97, 98, 99, 100]
    assert stream.finished is not None
    assert await async_client.generate("x", max_tokens=2).text() == "ab"


def test_score(client: Client, server: FakeServer) -> None:
    seen: list[Progress] = []
    check_scores(client.score(TEXT, on_progress=seen.append), TEXT)
    assert [progress.fraction for progress in seen] == [1]
    assert server.requests[-1].total_bytes == len(TEXT)
    long = "ab" * 40_000
    check_scores(client.score(long), long)
    assert [(block.start_token, len(block)) for block in client.stream_scores(long)] == [
        (0, 32768), (32768, 32768), (65536, 14464),
    ]  # fmt: skip
    assert client.stream_scores(TEXT).collect().tokens == len(TEXT)
    stream = client.stream_scores(long)
    next(stream)
    with pytest.raises(RuntimeError, match="iterated over already"):
        stream.collect()


async def test_score_async(async_client: AsyncClient) -> None:
    check_scores(await async_client.score(TEXT), TEXT)
    assert [block.start_token async for block in async_client.stream_scores(TEXT)] == [0]


def test_model_service(client: Client) -> None:
    assert (client.model().name, client.model().max_tokens) == ("fake", 1 << 20)
    load = client.load()
    assert (load.running_requests, load.total_page_bytes, load.draining) == (2, 1000, True)
    assert client.tokenize("ab") == [97, 98]
    assert client.detokenize([97, 98]) == "ab"


async def test_model_service_async(async_client: AsyncClient) -> None:
    assert (await async_client.model()).vocab_size == 256
    assert (await async_client.load()).draining
    assert await async_client.tokenize("ab") == [97, 98]
    assert await async_client.detokenize([97, 98]) == "ab"


def test_wrong_arguments_are_refused_before_anything_is_sent(client: Client, server: FakeServer) -> None:
    document = client.documents.create(TEXT)
    before = len(server.calls)
    with pytest.raises(TypeError, match=r"no sampling parameter max_token; there are .*max_tokens"):
        client.generate("x", max_token=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="not bytes"):
        client.generate(b"x")
    with pytest.raises(TypeError, match="temperature can't be 'hot'"):
        client.generate("x", temperature="hot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tokens can't be -1"):
        client.generate("x", max_tokens=-1)
    with pytest.raises(ValueError, match="one is 4294967296"):
        client.generate([1, 2**32])
    for wrong in ("", "a b", "дом", "a\n", "x" * 129):
        with pytest.raises(ValueError, match=r"1 to 128 characters of \[A-Za-z0-9._~-\]"):
            client.documents.get(wrong)
    with pytest.raises(TypeError, match="not one str"):
        document.score_continuations("yes")
    with pytest.raises(ValueError, match="must be above 0, but is -1"):
        client.model(timeout=-1)
    assert len(server.calls) == before


def test_callbacks_run_on_the_callers_thread_and_may_call_the_client(client: Client) -> None:
    answers = []
    client.documents.create(TEXT, on_progress=lambda progress: answers.append(client.tokenize("a")))
    client.generate("x", on_progress=lambda progress: answers.append(client.tokenize("b"))).text()
    assert answers == [[97]] * 3 + [[98]]


def test_a_failing_callback_ends_the_call(client: Client, server: FakeServer) -> None:
    def fail(progress: Progress) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.documents.create(TEXT, on_progress=fail)
    with pytest.raises(KeyError, match="mine"):
        next(client.generate("x", on_progress=fail))
    assert client.tokenize("a") == [97]


async def test_a_failing_callback_ends_the_call_async(async_client: AsyncClient) -> None:
    def fail(progress: Progress) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await async_client.documents.create(TEXT, on_progress=fail)
    stream = async_client.generate("x", on_progress=fail)
    with pytest.raises(KeyError, match="mine"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@pytest.mark.parametrize(
    ("blocking", "original"),
    [
        (Client, AsyncClient),
        (Documents, AsyncDocuments),
        (Document, AsyncDocument),
        (GenerationStream, AsyncGenerationStream),
        (ScoreStream, AsyncScoreStream),
        (DocumentScoreStream, AsyncDocumentScoreStream),
    ],
)
def test_the_blocking_view_is_complete_and_has_the_same_signatures(blocking: type, original: type) -> None:
    names = {name for name in vars(original) if not name.startswith("_")}
    assert names <= {name for cls in blocking.__mro__ for name in vars(cls)}
    for name in names:
        if inspect.isfunction(vars(original)[name]):
            assert inspect.signature(getattr(blocking, name)) == inspect.signature(getattr(original, name))
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


def test_everything_public_is_exported() -> None:
    for name in reformer_client.__all__:
        assert inspect.getdoc(getattr(reformer_client, name)), f"{name} has no docstring"
