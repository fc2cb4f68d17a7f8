"""Uploads: what can be sent, how it is cut, and how they go on after they broke off."""

import array
import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from reformer.v1 import document_pb2
from reformer_client import AsyncClient, Client, InternalError, UnavailableError
from tests.client.fake_server import FakeServer

BLOCK = 256 * 1024
CONTENT = os.urandom(3 * BLOCK + 1000).hex().encode()[: 3 * BLOCK + 1000]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Pipe(io.RawIOBase):
    """A binary file that can't seek and gives a little at a time."""

    def __init__(self, content: bytes) -> None:
        self._rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._rest.read(min(len(buffer), 10_000))
        buffer[: len(data)] = data
        return len(data)


def in_pieces(content: bytes, size: int = 7000) -> Iterator[bytes]:
    return (content[i : i + size] for i in range(0, len(content), size))


async def in_async_pieces(content: bytes) -> AsyncIterator[bytes]:
    for piece in in_pieces(content):
        yield piece


def as_path(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "content.txt").write_bytes(content)
    return tmp_path / "content.txt"


def as_file_from_the_middle(content: bytes, tmp_path: Path) -> io.BytesIO:
    file = io.BytesIO(b"skip this" + content)
    file.seek(9)
    return file


SEEKABLE: dict[str, Callable[[bytes, Path], Any]] = {
    "str": lambda content, _: content.decode(),
    "bytes": lambda content, _: content,
    "bytearray": lambda content, _: bytearray(content),
    "memoryview": lambda content, _: memoryview(content),
    "path": as_path,
    "file": as_file_from_the_middle,
}
ONCE: dict[str, Callable[[bytes, Path], Any]] = {
    "pipe": lambda content, _: Pipe(content),
    "iterator": lambda content, _: in_pieces(content),
    "async iterator": lambda content, _: in_async_pieces(content),
    "list": lambda content, _: list(in_pieces(content)),
}


@pytest.mark.parametrize("kind", [*SEEKABLE, *ONCE])
def test_every_kind_of_source(client: Client, server: FakeServer, tmp_path: Path, kind: str) -> None:
    make = (SEEKABLE | ONCE)[kind]
    document = client.documents.create(make(CONTENT, tmp_path))
    assert server.uploads[document.id] == CONTENT
    header = server.requests[-1]
    assert header.content_type == document_pb2.CONTENT_TYPE_TEXT
    assert len(server.chunk_sizes) <= 4  # small pieces travel together
    if kind in SEEKABLE:
        assert (header.total_bytes, header.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).digest())
        assert server.chunk_sizes == [BLOCK, BLOCK, BLOCK, 1000]
    else:
        assert not header.HasField("total_bytes")
        assert not header.HasField("sha256")
    assert client.score(make(CONTENT, tmp_path)).tokens == len(CONTENT)


async def test_sources_of_the_async_client(async_client: AsyncClient, server: FakeServer, tmp_path: Path) -> None:
    for make in (SEEKABLE["path"], *ONCE.values()):
        document = await async_client.documents.create(make(CONTENT, tmp_path))
        assert server.uploads[document.id] == CONTENT


@pytest.mark.parametrize("make", [list, tuple, lambda ids: array.array("q", ids), lambda ids: ids])
def test_token_ids(client: Client, server: FakeServer, make: Callable[[range], Any]) -> None:
    document = client.documents.create(make(range(300, 1000)))
    assert memoryview(bytes(server.uploads[document.id])).cast("I").tolist() == list(range(300, 1000))
    assert server.requests[-1].content_type == document_pb2.CONTENT_TYPE_TOKEN_IDS
    assert document.content_type.value == "token_ids"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, TypeError, "can't read from NoneType; pass a str"),
        (3, TypeError, "can't read from int"),
        (io.StringIO("text"), TypeError, "text mode; open it in binary mode"),
        (["a", "b"], TypeError, "token ids must be ints"),
        ([1.5], TypeError, "token ids must be ints"),
        (dict.fromkeys(["a"]), TypeError, "must yield bytes, but yielded str"),
        ([1, -1], ValueError, "between 0 and 2"),
        (Path("/nowhere/at/all"), FileNotFoundError, "nowhere"),
        ("\ud800", ValueError, "surrogates"),
    ],
    ids=str,
)
def test_what_cant_be_read(client: Client, source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        client.documents.create(source)
    with pytest.raises(error, match=message):
        client.score(source)


def test_an_error_of_the_source_is_the_callers(client: Client, server: FakeServer) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * BLOCK
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.documents.create(broken())
    with pytest.raises(KeyError, match="mine"):
        client.score(broken())
    server.wait_until(lambda: server.cancelled["CreateDocument"] == 1)


def test_files_of_the_client_are_closed_and_files_of_the_caller_are_not(client: Client, tmp_path: Path) -> None:
    client.documents.create(as_path(CONTENT, tmp_path))  # unclosed, it would be a ResourceWarning: an error here
    with as_path(CONTENT, tmp_path).open("rb") as file:
        client.documents.create(file)
        assert not file.closed


@pytest.mark.parametrize("kind", SEEKABLE)
@pytest.mark.parametrize("breaks_at", [[0], [BLOCK], [1, BLOCK + 1, BLOCK + 2, 2 * BLOCK, 3 * BLOCK, 3 * BLOCK + 999]])
def test_a_broken_upload_goes_on(
    client: Client, server: FakeServer, tmp_path: Path, kind: str, breaks_at: list[int]
) -> None:
    server.break_upload_at.extend(breaks_at)
    document = client.documents.create(SEEKABLE[kind](CONTENT, tmp_path), document_id="war")
    assert server.uploads["war"] == CONTENT
    assert server.count("CreateDocument") == len(breaks_at) + 1
    assert document.content_bytes == len(CONTENT)
    headers = [request for request in server.requests if isinstance(request, document_pb2.DocumentHeader)]
    assert all(header == headers[0] for header in headers)
    # All of it was sent about once: what had arrived isn't sent again.
    assert sum(server.chunk_sizes) <= len(CONTENT) + len(breaks_at) * BLOCK


def test_a_server_that_forgot_gets_all_of_it_again(client: Client, server: FakeServer) -> None:
    server.break_upload_at.append(2 * BLOCK)
    server.forget_uploads = True
    document = client.documents.create(CONTENT)
    assert server.uploads[document.id] == CONTENT


def test_attempts_without_any_advance_are_bounded(client: Client, server: FakeServer) -> None:
    server.break_upload_at.extend([BLOCK] * 20)
    with pytest.raises(UnavailableError):
        client.documents.create(CONTENT)
    assert server.count("CreateDocument") == 5  # once for the first block, four times in vain


def test_a_break_while_the_server_reads(client: Client, server: FakeServer) -> None:
    server.fail("CreateDocument", UNAVAILABLE, after=2)
    document = client.documents.create(CONTENT)
    assert document.tokens == len(CONTENT)
    assert sum(server.chunk_sizes) == len(CONTENT)  # nothing was sent again


def test_other_failures_of_an_upload_are_final(client: Client, server: FakeServer) -> None:
    server.fail("CreateDocument", grpc.StatusCode.INTERNAL, after=1)
    with pytest.raises(InternalError):
        client.documents.create(CONTENT)
    assert server.count("CreateDocument") == 1


@pytest.mark.parametrize("kind", ONCE)
def test_a_source_that_comes_once_goes_on_within_its_latest_block(
    client: Client, server: FakeServer, tmp_path: Path, kind: str
) -> None:
    server.fail("CreateDocument", UNAVAILABLE)  # nothing is read before the server has accepted
    server.break_upload_at.append(1000)
    document = client.documents.create(ONCE[kind](CONTENT[:2000], tmp_path))
    assert server.uploads[document.id] == CONTENT[:2000]
    assert server.count("CreateDocument") == 3


def test_large_pieces_are_cut(client: Client, server: FakeServer) -> None:
    document = client.documents.create(iter([CONTENT]))
    assert server.uploads[document.id] == CONTENT
    assert server.chunk_sizes == [2 * BLOCK, BLOCK + 1000]


@pytest.mark.parametrize("kind", ONCE)
def test_a_source_that_comes_once_cant_go_back(client: Client, server: FakeServer, tmp_path: Path, kind: str) -> None:
    server.break_upload_at.append(3 * BLOCK)
    server.forget_uploads = True
    with pytest.raises(UnavailableError, match=r"can be read only once.*pass a Path, bytes or a seekable file"):
        client.documents.create(ONCE[kind](CONTENT, tmp_path))


def test_scores_of_a_source_that_comes_once_cant_be_asked_again(client: Client, server: FakeServer) -> None:
    server.break_score_at = 2 * BLOCK
    with pytest.raises(UnavailableError, match="can be read only once"):
        client.score(in_pieces(CONTENT))
    server.break_score_at = 2 * BLOCK
    assert client.score(CONTENT).tokens == len(CONTENT)


def test_every_call_about_a_document_names_it(client: Client, server: FakeServer) -> None:
    with client.documents.create("Natasha", document_id="war", keep_scores=True) as document:
        document.generate("x").text()
        document.scores()
        document.score_continuations(["x"])
        document.renew()
        client.documents.get("war")
        client.documents.renew("war")
    assert len(server.calls) == 8
    assert {metadata["x-document-id"] for _, metadata in server.calls} == {"war"}
