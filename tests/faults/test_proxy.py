"""The proxy does what the other tests rely on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.proxy import Fault, Faults, Proxy, proxying

DATA = bytes(range(256)) * 1000  # many chunks


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort() if reader.exception() else writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, proxying(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_into(data: bytearray, reader: asyncio.StreamReader) -> None:
    while more := await reader.read(1):
        data += more


async def sent_and_echoed(proxy: Proxy) -> bytes:
    async with connected(proxy) as (reader, writer):

        async def send() -> None:
            writer.write(DATA)
            await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            return await group.create_task(reader.read(-1))


async def test_passes_everything(proxy: Proxy) -> None:
    assert await sent_and_echoed(proxy) == DATA
    assert (proxy.connections, proxy.cuts, proxy.flipped) == (1, 0, 0)


@pytest.mark.parametrize("at", [0, 1, 16 << 10, 100_001])
@pytest.mark.parametrize("to_server", [True, False])
async def test_cuts(proxy: Proxy, at: int, to_server: bool) -> None:
    cut = Fault(cut_at=at)
    proxy.upcoming.append(Faults(to_server=cut) if to_server else Faults(to_client=cut))
    async with connected(proxy) as (reader, writer):
        writer.write(DATA)
        echoed = bytearray()
        with pytest.raises(ConnectionResetError):
            await read_into(echoed, reader)
    assert proxy.cuts == 1
    assert DATA.startswith(echoed)
    assert len(echoed) <= at
    assert await sent_and_echoed(proxy) == DATA, "only one connection was to be cut"


@pytest.mark.parametrize("at", [1, 20_000])
async def test_stands_still_after_so_many_bytes(proxy: Proxy, at: int) -> None:
    proxy.upcoming.append(Faults(to_client=Fault(stall_at=at)))
    async with connected(proxy) as (reader, writer):
        writer.write(DATA[:50_000])
        assert await reader.readexactly(at) == DATA[:at]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)


async def test_stands_still_when_told_to(proxy: Proxy) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        proxy.stall()
        writer.write(b"after")
        writer.write_eof()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)


@pytest.mark.parametrize("to_server", [True, False])
async def test_flips_bits(proxy: Proxy, to_server: bool) -> None:
    flips = {0: 1, 77_777: 0x80, len(DATA) - 1: 0xFF}
    proxy.upcoming.append(Faults(to_server=Fault(flips=flips)) if to_server else Faults(to_client=Fault(flips=flips)))
    expected = bytearray(DATA)
    for place, bits in flips.items():
        expected[place] ^= bits
    assert await sent_and_echoed(proxy) == expected
    assert proxy.flipped == len(flips)
