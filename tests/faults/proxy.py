"""A TCP proxy that does to a connection what networks do: it cuts it, stands still, or changes bytes."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

CHUNK_BYTES = 16 << 10
RESET = struct.pack("ii", 1, 0)  # SO_LINGER that makes close() send RST


class CutError(Exception):
    """The connection is to be reset."""


@dataclass(frozen=True)
class Fault:
    """What happens to the bytes of one direction of one connection; by default nothing. Places count from its start."""

    cut_at: int | None = None
    """So many bytes pass, then the connection is reset on both sides."""
    stall_at: int | None = None
    """So many bytes pass, then no further one does, and nobody is told."""
    flips: Mapping[int, int] = field(default_factory=dict)
    """Bits to be turned over, by the place of their byte."""


@dataclass(frozen=True)
class Faults:
    """The faults of one connection."""

    to_server: Fault = Fault()
    to_client: Fault = Fault()


class Proxy:
    """Passes on what comes to `address`; the faults in `upcoming` are used up by its next connections, one each."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.upcoming: deque[Faults] = deque()
        self.connections = 0
        self.cuts = 0
        """Connections that were reset by a fault."""
        self.flipped = 0
        """Bytes that were changed."""
        self.to_server_bytes = 0
        """What has passed in this direction, over all connections."""
        self._target_port = target_port
        self._stalled = False

    @property
    def address(self) -> str:
        """For clients."""
        return f"127.0.0.1:{self.port}"

    def stall(self) -> None:
        """From now on nothing passes in any direction, not even that a side has hung up: all is half open."""
        self._stalled = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        self.connections += 1
        faults = self.upcoming.popleft() if self.upcoming else Faults()
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, server_writer, faults.to_server, self._count))
                pumps.create_task(self._pump(server_reader, writer, faults.to_client, lambda size: None))
        except* CutError:
            self.cuts += 1
            for each in (writer, server_writer):
                each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        except* OSError:  # one side has hung up, and so do we
            pass
        finally:
            for each in (writer, server_writer):
                each.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: Fault,
        note: Callable[[int], None],
    ) -> None:
        passed = 0
        while (data := await reader.read(CHUNK_BYTES)) and not self._stalled:
            last = min((at for at in (fault.cut_at, fault.stall_at) if at is not None), default=None)
            reached = last is not None and passed + len(data) >= last
            data = data if last is None else data[: last - passed]
            writer.write(self._changed(data, passed, fault))
            await writer.drain()
            passed += len(data)
            note(len(data))
            if reached and last == fault.cut_at:
                raise CutError
            if reached:
                await asyncio.Event().wait()
        if self._stalled:
            await asyncio.Event().wait()
        writer.write_eof()

    def _count(self, size: int) -> None:
        self.to_server_bytes += size

    def _changed(self, data: bytes, start: int, fault: Fault) -> bytes:
        here = {place - start: bits for place, bits in fault.flips.items() if start <= place < start + len(data)}
        self.flipped += len(here)
        changed = bytearray(data)
        for place, bits in here.items():
            changed[place] ^= bits
        return bytes(changed)


@asynccontextmanager
async def proxying(target_port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of a port of this machine; at the end of the block all its connections are gone."""
    proxy = Proxy(target_port)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await proxy.serve(reader, writer)
        tasks.discard(task)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
