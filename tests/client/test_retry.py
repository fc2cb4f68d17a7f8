"""Calls are tried again only before anything was received, and only as long as it makes sense."""

import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo

from reformer_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    RetryPolicy,
    UnavailableError,
)
from reformer_client.errors import ERROR_CLASSES
from tests.client.fake_server import FakeServer

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
SOON = RetryInfo(retry_delay=Duration(nanos=100_000_000))


def test_unary_calls_are_tried_again(client: Client, server: FakeServer) -> None:
    server.fail("GetModel", UNAVAILABLE, UNAVAILABLE, UNAVAILABLE)
    assert client.model().name == "fake"
    assert server.count("GetModel") == 4
    assert len({metadata["x-request-id"] for _, metadata in server.calls}) == 1


def test_attempts_are_bounded(client: Client, server: FakeServer) -> None:
    server.fail("GetModel", *[UNAVAILABLE] * 5)
    with pytest.raises(UnavailableError):
        client.model()
    assert server.count("GetModel") == 4


@pytest.mark.parametrize("after", [0, 1, 2], ids=["nothing", "its start", "progress"])
def test_generations_are_tried_again_before_the_first_token(client: Client, server: FakeServer, after: int) -> None:
    server.fail("Generate", UNAVAILABLE, after=after)
    assert client.generate("x", max_tokens=2).text() == "ab"
    assert server.count("Generate") == 2


@pytest.mark.parametrize("after", [0, 1], ids=["nothing", "progress"])
def test_scorings_are_tried_again_before_the_first_score(client: Client, server: FakeServer, after: int) -> None:
    server.fail("Score", UNAVAILABLE, after=after)
    assert client.score("Natasha").tokens == 7
    assert server.count("Score") == 2


@pytest.mark.parametrize(("method", "after"), [("Generate", 3), ("Generate", 5), ("Score", 2)])
def test_neither_is_after_it(client: Client, server: FakeServer, method: str, after: int) -> None:
    server.fail(method, UNAVAILABLE, after=after)
    with pytest.raises(UnavailableError):
        client.generate("x").text() if method == "Generate" else client.score("Natasha")
    assert server.count(method) == 1


async def test_async_calls_are_tried_again(async_client: AsyncClient, server: FakeServer) -> None:
    server.fail("GetModel", UNAVAILABLE)
    server.fail("Generate", UNAVAILABLE)
    assert (await async_client.model()).name == "fake"
    assert await async_client.generate("x", max_tokens=2).text() == "ab"


def test_exhausted_resources_only_if_the_server_says_when(client: Client, server: FakeServer) -> None:
    server.fail("Generate", EXHAUSTED)
    with pytest.raises(ResourceExhaustedError):
        client.generate("x").text()
    assert server.count("Generate") == 1
    server.fail("Generate", EXHAUSTED, details=[SOON])
    began = time.monotonic()
    assert client.generate("x", max_tokens=2).text() == "ab"
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("code", set(ERROR_CLASSES) - {UNAVAILABLE, EXHAUSTED}, ids=lambda code: code.name)
def test_nothing_else_is_tried_again(client: Client, server: FakeServer, code: grpc.StatusCode) -> None:
    server.fail("Tokenize", code, details=[SOON])
    with pytest.raises(ERROR_CLASSES[code]):
        client.tokenize("x")
    assert server.count("Tokenize") == 1


def test_a_wait_beyond_the_deadline_is_not_begun(client: Client, server: FakeServer) -> None:
    server.fail("GetModel", UNAVAILABLE, details=[RetryInfo(retry_delay=Duration(seconds=60))])
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        client.model(timeout=1)
    assert time.monotonic() - began < 1


def test_all_attempts_share_the_deadline(server: FakeServer) -> None:
    with Client(server.address, timeout=2) as client:
        server.fail("GetModel", UNAVAILABLE, details=[RetryInfo(retry_delay=Duration(nanos=400_000_000))])
        client.model()
    first, second = server.deadlines
    assert first is not None
    assert second is not None
    assert 1.3 < second < 1.7 < 1.9 < first < 2.1  # gRPC rounds deadlines by up to 3 %


def test_deadlines(server: FakeServer) -> None:
    with Client(server.address) as client:
        client.model()
        client.generate("x").text()
        client.model(timeout=3)
        client.generate("x", timeout=4).text()
    for told, expected in zip(server.deadlines, (30, None, 3, 4), strict=True):
        assert told == (expected and pytest.approx(expected, abs=1))
    server.stall = True
    with Client(server.address, timeout=0.2) as client:
        with pytest.raises(DeadlineExceededError):
            client.generate("x").text()
        with pytest.raises(DeadlineExceededError):
            client.documents.create("Natasha")


def test_no_deadline(server: FakeServer) -> None:
    with Client(server.address, timeout=2) as client:
        client.model(timeout=float("inf"))
    assert server.deadlines == [None]


def test_nobody_there() -> None:
    policy = RetryPolicy(max_attempts=2, initial_backoff_seconds=0.01)
    with Client("localhost:1", retry=policy) as client, pytest.raises(UnavailableError, match="connect"):
        client.model()


def test_waits_grow_up_to_the_bound_and_honour_the_server() -> None:
    policy = RetryPolicy(initial_backoff_seconds=1, max_backoff_seconds=3, multiplier=2)
    error = UnavailableError("away")
    for failures, bound in ((1, 1), (2, 2), (3, 3), (4, 3)):
        waits = [policy.wait_seconds(failures, error) for _ in range(200)]
        assert 0 <= min(waits) < 0.1 * bound
        assert 0.9 * bound < max(waits) <= bound
    told = UnavailableError("away", details=[RetryInfo(retry_delay=Duration(seconds=7))])
    assert 7 <= policy.wait_seconds(1, told) <= 8
    nonsense = UnavailableError("away", details=[RetryInfo(retry_delay=Duration(seconds=-7))])
    assert 0 <= policy.wait_seconds(1, nonsense) <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"initial_backoff_seconds": -1},
        {"initial_backoff_seconds": 9, "max_backoff_seconds": 1},
        {"max_backoff_seconds": float("nan")},
        {"multiplier": 0.5},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]


def test_a_server_that_ends_a_stream_early_is_noticed(client: Client, server: FakeServer) -> None:
    server.truncate = 3
    with pytest.raises(InternalError, match="without saying why"):
        client.generate("x").text()
    with pytest.raises(InternalError, match="ended the scores early"):
        client.score("ab" * 60_000)
    with pytest.raises(InternalError, match="without a document"):
        client.documents.create("x")
