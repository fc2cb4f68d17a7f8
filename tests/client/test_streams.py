"""Leaving a stream early, in whatever way, ends the call on the server."""

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from reformer.v1 import inference_pb2
from reformer_client import AsyncClient, CancelledError, Client, InternalError, Progress, messages
from reformer_client.blocking import Portal
from tests.client.fake_server import FakeServer


@pytest.fixture
def stalled(server: FakeServer) -> FakeServer:
    server.stall = True
    return server


def wait_for_cancellation(server: FakeServer, method: str = "Generate", times: int = 1) -> None:
    server.wait_until(lambda: server.cancelled[method] >= times)


def leave_by_break(client: Client) -> None:
    for _ in client.generate("x"):
        break


def leave_by_with(client: Client) -> None:
    with client.generate("x") as stream:
        next(stream)


def leave_by_error(client: Client) -> None:
    with contextlib.suppress(KeyError), client.generate("x") as stream:
        for _ in stream:
            raise KeyError


def leave_by_close(client: Client) -> None:
    stream = client.generate("x")
    next(stream)
    stream.close()
    assert list(stream) == []


def leave_by_collection_in_a_cycle(client: Client) -> None:
    stream = client.generate("x")
    next(stream)
    cycle = [stream]
    cycle.append(cycle)  # type: ignore[arg-type]
    del stream, cycle
    gc.collect()


LEAVE = [leave_by_break, leave_by_with, leave_by_error, leave_by_close, leave_by_collection_in_a_cycle]


@pytest.mark.parametrize("leave", LEAVE)
def test_leaving_cancels_the_call(client: Client, stalled: FakeServer, leave: Callable[[Client], None]) -> None:
    leave(client)
    wait_for_cancellation(stalled)


def test_leaving_scores_cancels_the_call(client: Client, stalled: FakeServer) -> None:
    with client.stream_scores("ab" * 60_000) as stream:
        next(stream)
    wait_for_cancellation(stalled, "Score")


def test_leaving_after_a_call_that_failed_cancels_it(client: Client, stalled: FakeServer) -> None:
    """The error's traceback doesn't keep the stream."""
    stream = client.stream_scores("ab" * 60_000)
    next(stream)
    with contextlib.suppress(RuntimeError):
        stream.collect()  # a part is read already
    del stream
    wait_for_cancellation(stalled, "Score")


async def test_leaving_cancels_the_call_async(async_client: AsyncClient, stalled: FakeServer) -> None:
    async for _ in async_client.generate("x"):
        break
    await asyncio.to_thread(wait_for_cancellation, stalled)
    async with async_client.generate("x") as stream:
        await anext(stream)
    await asyncio.to_thread(wait_for_cancellation, stalled, times=2)


async def test_a_cancelled_task_cancels_the_call(async_client: AsyncClient, stalled: FakeServer) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await async_client.generate("x").collect()
    await asyncio.to_thread(wait_for_cancellation, stalled)


async def test_a_cancelled_upload_cancels_the_call(async_client: AsyncClient, stalled: FakeServer) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await async_client.documents.create("Natasha")
    await asyncio.to_thread(wait_for_cancellation, stalled, "CreateDocument")


def test_closing_the_client_ends_its_streams(server: FakeServer) -> None:
    server.stall = True
    client = Client(server.address)
    stream = client.generate("x")
    next(stream)
    client.close()
    wait_for_cancellation(server)
    with pytest.raises(RuntimeError, match="closed"):
        client.model()


async def test_closing_the_client_under_a_waiting_stream_says_so(server: FakeServer) -> None:
    server.stall = True
    client = AsyncClient(server.address)
    waiting = asyncio.create_task(client.generate("x").collect())
    loading = asyncio.create_task(client.load())
    await asyncio.to_thread(server.wait_until, lambda: len(server.calls) == 2)
    await client.close()
    for task in (waiting, loading):
        with pytest.raises(CancelledError, match="client was closed"):
            await task
    with pytest.raises(RuntimeError, match="closed"):
        await client.model()


def test_streams_of_one_client_dont_wait_for_each_other(client: Client, stalled: FakeServer) -> None:
    streams = [client.generate("x") for _ in range(5)]
    assert [next(stream).id for stream in streams] == [97] * 5


def test_a_document_keeps_its_client_alive(server: FakeServer) -> None:
    document = Client(server.address).documents.create("Natasha")
    gc.collect()
    assert document.generate(max_tokens=2).text() == "ab"


def test_two_clients_at_once(server: FakeServer) -> None:
    with Client(server.address) as one, Client(server.address) as two:
        first, second = one.generate("x", max_tokens=20), two.generate("x", max_tokens=20)
        assert [a.id for a, b in zip(first, second, strict=True) if a == b] == [97 + i for i in range(20)]


def test_a_stream_can_be_closed_right_after_an_interrupted_wait(client: Client, stalled: FakeServer) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    for _ in range(10):
        stream = client.generate("x", on_progress=interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        stream.close()
        assert list(stream) == []


def test_an_interrupt_before_the_call_began_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No coroutine that nobody awaits, of which Python would complain, and no wait for a call that never began."""

    async def nothing() -> None: ...

    portal = Portal(at_end=nothing)
    loop = portal._loop
    schedule, interrupts = loop.call_soon_threadsafe, iter([KeyboardInterrupt()])

    def interrupted(callback: Callable[[], object]) -> object:
        for interrupt in interrupts:
            raise interrupt
        return schedule(callback)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", interrupted)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            portal.run(nothing, SimpleQueue())
        assert time.monotonic() - began < 5
    gc.collect()
    portal.close()


def test_closing_the_client_under_a_waiting_thread_says_so(server: FakeServer) -> None:
    server.stall = True
    client = Client(server.address)
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(client.generate("x").collect), threads.submit(client.load)]
        server.wait_until(lambda: len(server.calls) == 2)
        client.close()
        for each in waiting:
            with pytest.raises(CancelledError, match="client was closed"):
                each.result(timeout=5)


def test_a_chunk_whose_parts_dont_add_up_is_an_error_of_the_sdk() -> None:
    """Without TLS, bytes can change on their way and still be a message."""
    for chunk in (
        inference_pb2.TokenChunk(ids=[1, 2], logprobs=[-1.0]),
        inference_pb2.TokenChunk(ids=[1, 2], logprobs=[-1.0, -2.0], top=[inference_pb2.TopTokens()]),
    ):
        with pytest.raises(InternalError, match="changed on its way"):
            messages.tokens(chunk)


def test_closing_a_client_disturbs_no_other_one(
    client: Client, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC tells of cut calls a little later; the loop of another client would log that nobody is there for it."""
    client.model()
    server.stall = True
    for number in range(1, 6):
        others = [Client(server.address) for _ in range(3)]
        with ThreadPoolExecutor() as threads:
            waiting = [threads.submit(other.generate("x").collect) for other in others]
            server.wait_until(lambda: server.count("Generate") == 3 * number)  # noqa: B023 -- waited for here
            for other in others:
                other.close()
            assert all(isinstance(each.exception(timeout=5), CancelledError) for each in waiting)
        client.model()
    assert caplog.messages == []
