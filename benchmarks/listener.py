"""A stream that somebody else reads: a process of its own, which notes when each token came."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

from reformer_client import Client

PROMPT = "It was a delightful visit;"
STREAM_TOKENS = 4096  # then the next stream begins, so that no tail becomes very long
START_SECONDS = 60.0


@dataclass
class Arrivals:
    """When tokens came, in seconds of time.monotonic(), stream by stream; there when the block of `listening` ends."""

    streams: list[list[float]] = field(default_factory=list)

    def gaps(self, began: float, ended: float) -> list[float]:
        """Seconds between a token and the one before it, of those that came in this time."""
        return [
            after - before
            for stream in self.streams
            for before, after in pairwise(stream)
            if began <= before and after <= ended
        ]


@contextmanager
def listening(address: str) -> Iterator[Arrivals]:
    """Streams tokens from the server, one stream after the other, until the block ends; it begins with the first."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    stop = context.Event()
    process = context.Process(target=_listen, args=(address, stop, sender))
    process.start()
    sender.close()
    arrivals = Arrivals()
    try:
        if not receiver.poll(START_SECONDS):
            raise TimeoutError(f"no token came within {START_SECONDS:g} s")
        receiver.recv()
        yield arrivals
        stop.set()
        arrivals.streams += receiver.recv()
    except EOFError:
        raise RuntimeError("the stream's reader failed; why is said above") from None
    finally:
        process.kill()
        process.join()
        receiver.close()


def _listen(address: str, stop: Event, sender: Connection) -> None:
    streams: list[Sequence[float]] = []
    with Client(address) as client:
        while not stop.is_set():
            arrived: list[float] = []
            streams.append(arrived)
            with client.generate(PROMPT, max_tokens=STREAM_TOKENS, temperature=1.0, seed=len(streams)) as stream:
                for _ in stream:
                    arrived.append(time.monotonic())
                    if len(arrived) == len(streams) == 1:
                        sender.send("the first token")
                    if stop.is_set():
                        break
    sender.send(streams)
