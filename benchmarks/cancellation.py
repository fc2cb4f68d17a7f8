"""How soon the server stops working on what nobody wants any more.

    python -m benchmarks.cancellation [--tokens 131072]
    python -m benchmarks.cancellation --quick

On the embedded text model a client cancels generations, uploads and scores, each at a random moment. Of half of them
the server's metrics are looked at again and again, until they say that nothing runs. Of the other half, which nothing
disturbs, the server says how long it took from the moment when it knew. Beside it: how long the slices are that it does
at a time, measured in an engine.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from itertools import product
from typing import Any

import torch

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, embedded_engine, read_tokens
from benchmarks.harness import in_child, markdown_table, save
from benchmarks.serving import ServerProcess, length_options, quantile, serving_embedded
from reformer_client import AsyncClient, Progress
from reformer_core.blocking import Collected

NAME = "cancellation"
TOKENS, REPEATS = 131_072, 20
QUICK_TOKENS, QUICK_REPEATS = 8192, 3
UNWATCHED_SECONDS = 0.5  # looking takes the server's time
SPREAD_SECONDS = 0.05  # moments of cancelling are spread over so long, which is several slices
RUNNING = "reformer_requests_running"
TOOK = "reformer_cancel_latency_seconds_sum"
COUNT = "reformer_cancel_latency_seconds_count"

Cancel = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    what = "How soon cancelled work stops."
    name, tokens, quick = length_options(NAME, what, arguments, tokens=TOKENS, quick_tokens=QUICK_TOKENS)
    token_ids = read_tokens(NOVEL, tokens)
    slices = in_child(slice_seconds, token_ids).value
    with serving_embedded(tokens) as server:
        calls = asyncio.run(measured(server, token_ids.tolist(), QUICK_REPEATS if quick else REPEATS))
        looks = [look_seconds(server) for _ in range(20)]
    result = {
        "tokens": tokens,
        "slice_seconds": {"median": statistics.median(slices), "p99": quantile(slices, 0.99), "most": max(slices)},
        "look_seconds": statistics.median(looks),
        "calls": calls,
    }
    save(name, {**result, "bars": [{**asdict(bar), "met": bar.met} for bar in bars(result)]})
    print(tables(result))


def slice_seconds(token_ids: torch.Tensor) -> list[float]:
    """How long each turn of an engine takes that reads a document."""
    engine, sink = embedded_engine(max_running=1), Collected()
    request = engine.submit_prefill(token_ids, sink)
    seconds = []
    while request.phase != "done":
        began = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def look_seconds(server: ServerProcess) -> float:
    """How long a look at the metrics takes."""
    began = time.perf_counter()
    server.metrics()
    return time.perf_counter() - began


async def measured(server: ServerProcess, token_ids: list[int], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each cancellation, by the kind of call."""
    randomness = random.Random(0)
    async with AsyncClient(server.address) as client:
        kinds = {"generate": generating, "upload": uploading, "score": scoring}
        results: dict[str, dict[str, list[float]]] = {kind: {"seen": [], "known": []} for kind in kinds}
        for (kind, running), watched in product(kinds.items(), [True, False] * repeats):
            before = server.metrics()
            async with running(client, token_ids) as cancel:
                await asyncio.sleep(randomness.uniform(0, SPREAD_SECONDS))
                assert server.metrics()[RUNNING] == 1, f"{kind} was over before it could be cancelled"
                began = time.perf_counter()
                cancel()
                await (asyncio.to_thread(until_idle, server) if watched else asyncio.sleep(UNWATCHED_SECONDS))
                seconds = time.perf_counter() - began
            after = server.metrics()
            assert (after[COUNT], after[RUNNING]) == (before[COUNT] + 1, 0)
            if watched:
                results[kind]["seen"].append(seconds)
            else:
                results[kind]["known"].append(after[TOOK] - before[TOOK])
    return results


def until_idle(server: ServerProcess) -> None:
    """Looks at the metrics until they say that nothing runs."""
    while server.metrics()[RUNNING] > 0:
        pass


@asynccontextmanager
async def generating(client: AsyncClient, token_ids: list[int]) -> AsyncIterator[Cancel]:
    """A stream that has begun."""
    began = asyncio.Event()

    async def read() -> None:
        async for _ in client.generate(token_ids[:100], max_tokens=10_000, temperature=1.0, seed=0):
            began.set()

    async with running_task(read(), began) as cancel:
        yield cancel


@asynccontextmanager
async def uploading(client: AsyncClient, token_ids: list[int]) -> AsyncIterator[Cancel]:
    """A document that is being read."""
    began = asyncio.Event()
    document_id = "cancelled"

    async def create() -> None:
        await client.documents.create(token_ids, document_id=document_id, on_progress=lambda _: began.set())

    async with running_task(create(), began) as cancel:
        yield cancel
    await client.documents.delete(document_id)  # what was uploaded is kept for a while, to go on from there


@asynccontextmanager
async def scoring(client: AsyncClient, token_ids: list[int]) -> AsyncIterator[Cancel]:
    """A text that is being scored."""
    began = asyncio.Event()

    def tell(progress: Progress) -> None:
        began.set()

    async with running_task(client.score(token_ids, on_progress=tell), began) as cancel:
        yield cancel


@asynccontextmanager
async def running_task(call: Coroutine[Any, Any, object], began: asyncio.Event) -> AsyncIterator[Cancel]:
    """The call as a task, as soon as the server works on it; it is over at the end of the block."""
    task = asyncio.create_task(call)
    await asyncio.wait([task, waiting := asyncio.create_task(began.wait())], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    yield task.cancel
    with suppress(asyncio.CancelledError):
        await task


def bars(result: dict[str, Any]) -> list[Bar]:
    """What is promised: a slice that has begun is finished, and no other."""
    slice_, calls = result["slice_seconds"]["most"], result["calls"].values()
    known = max(seconds for call in calls for seconds in call["known"])
    seen = max(statistics.median(call["seen"]) for call in calls) - result["look_seconds"]
    return [
        Bar("longest time from when the server knows ÷ longest slice", known / slice_, most=1),
        Bar("median from when the client cancels, a look at the metrics aside ÷ longest slice", seen / slice_, most=1),
    ]


def tables(result: dict[str, Any]) -> str:
    """What was measured, and the bars."""
    rows = [
        [kind] + [f"{1000 * f(call[key]):.1f} ms" for key in ("seen", "known") for f in (statistics.median, max)]
        for kind, call in result["calls"].items()
    ]
    header = [
        "cancelled",
        "client cancels → nothing runs: median",
        "longest",
        "server knows → stopped: median",
        "longest",
    ]
    slices = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in result["slice_seconds"].items())
    beside = f"A slice: {slices}; a look at the metrics: {1000 * result['look_seconds']:.1f} ms."
    return "\n\n".join((markdown_table(header, rows), beside, bar_table(bars(result))))


if __name__ == "__main__":
    main()
