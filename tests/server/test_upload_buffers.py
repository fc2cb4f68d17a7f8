"""Content on its way in, by itself, with a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from reformer.v1 import document_pb2
from reformer_server.content import DocumentName
from reformer_server.errors import (
    UploadAbortedError,
    UploadMemoryError,
)
from reformer_server.uploads import UploadHeader, Uploads
from tests.server.clock import Clock
from tests.server.registry_parts import (
    TEXT,
    A,
    make_uploads,
)


async def send(uploads: Uploads, id: str, data: bytes, total: int | None) -> None:
    """A call that sends `data` and breaks off."""
    async with uploads.hold(UploadHeader(DocumentName("one", id), TEXT, total, None)) as upload:
        upload.append(document_pb2.ContentChunk(offset=upload.nbytes, data=data))


async def test_only_uploads_of_known_size_are_kept() -> None:
    uploads = make_uploads(Clock())
    await send(uploads, "a", b"x" * 10, total=20)
    await send(uploads, "b", b"x" * 10, total=None)
    assert (uploads.state(A), uploads.state(DocumentName("one", "b"))) == ("uploading", None)
    assert uploads.nbytes == 10


async def test_broken_off_uploads_are_forgotten_in_time() -> None:
    clock = Clock()
    uploads = make_uploads(clock)
    await send(uploads, "a", b"x", total=20)
    clock.now += 59
    uploads.sweep()
    assert uploads.state(A)
    clock.now += 1
    uploads.sweep()
    assert uploads.state(A) is None


async def test_broken_off_uploads_make_room_oldest_first() -> None:
    clock = Clock()
    uploads = make_uploads(clock)
    for id in "abc":
        await send(uploads, id, b"x" * 30, total=50)
        clock.now += 1
    await send(uploads, "d", b"x" * 40, total=50)
    assert [bool(uploads.state(DocumentName("one", id))) for id in "abcd"] == [False, True, True, True]


async def test_running_uploads_are_never_forgotten() -> None:
    uploads = make_uploads(Clock())
    async with uploads.hold(UploadHeader(A, TEXT, 80, None)) as upload:
        upload.append(document_pb2.ContentChunk(data=b"x" * 80))
        with pytest.raises(UploadMemoryError) as caught:
            await send(uploads, "b", b"x" * 30, total=50)
        assert (caught.value.needed_bytes, caught.value.free_bytes) == (30, 20)
        uploads.sweep()
        assert upload.nbytes == 80


@pytest.mark.parametrize("writing", [False, True])
async def test_taken_over_call_ends_wherever_it_is(writing: bool) -> None:
    """Reading the next chunk or, with its handler suspended at a `yield`, writing a response."""
    uploads = make_uploads(Clock())
    header = UploadHeader(A, TEXT, 80, None)
    holding = asyncio.Event()

    async def handler() -> AsyncIterator[None]:
        async with uploads.hold(header):
            holding.set()
            if not writing:
                await asyncio.sleep(10)
            yield

    async def call() -> None:
        async with aclosing(handler()) as responses:
            async for _ in responses:
                await asyncio.sleep(10)

    first = asyncio.create_task(call())
    await holding.wait()
    async with uploads.hold(header):
        with pytest.raises(UploadAbortedError):
            await first
        assert first.cancelling() == 0
    assert uploads.state(A) == "uploading"
