"""Calls of methods that the server does not have: refused, whatever bytes name them; others are accepted still."""

import asyncio

import grpc
import pytest

from reformer.v1 import model_pb2
from tests.server.conftest import Running
from tests.server.statuses import refused

UNIMPLEMENTED = b"\x0bgrpc-status\x0212"  # as HPACK has it


@pytest.mark.parametrize("method", ["/reformer.v1.InferenceService/Dream", "/a/b", "/"])
async def test_refused(running: Running, method: str) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        await running.channel.unary_unary(method)(b"")
    await running.model.GetLoad(model_pb2.GetLoadRequest())


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value


async def test_name_that_is_no_utf8(running: Running) -> None:
    """No client of gRPC's sends it; somebody who means harm does, and so does a network that flips a bit."""
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/reformer.v1.InferenceServic\xcf/Generate",
        b":authority": b"a",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    headers = b"".join(literal(name, value) for name, value in fields.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 5, 1, headers))
    async with asyncio.timeout(5):
        await reader.readuntil(UNIMPLEMENTED)
    writer.close()
    await running.model.GetLoad(model_pb2.GetLoadRequest())
