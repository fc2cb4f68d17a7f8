"""What is left of a server that is asked for more than it can do: how much comes in time, how fast it says no.

    python -m benchmarks.overload [--seconds 60]
    python -m benchmarks.overload --quick

The embedded text model generates short answers about one document. First a fixed number of callers, each asking again
as soon as it is answered, find out the most answers a second. Then calls arrive by chance (Poisson), at a share of that
rate and at multiples of it, each with a deadline; what is answered by then is goodput. Calls go through gRPC without
the SDK's retries: whoever is refused is gone.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, read_tokens
from benchmarks.harness import markdown_table, plot, save
from benchmarks.serving import quantile, serving
from benchmarks.streams import endless_model
from reformer.v1 import inference_pb2, inference_pb2_grpc
from reformer_client import Client

NAME, ID = "overload", "novel"
DOCUMENT_TOKENS, ANSWER_TOKENS = 4096, 32
MAX_RUNNING, MAX_WAITING = 8, 32
LOADS = (0.5, 0.8, 1.0, 2.0, 4.0)  # of the most answers a second
OVERLOADS = (2.0, 4.0)
DEADLINE_SERVICES = 3.0  # times what an answer takes when as many as may are answered together
SECONDS, QUICK_SECONDS = 60.0, 4.0
LEAST_GOODPUT, MOST_REFUSAL_SECONDS = 0.95, 0.05


@dataclass
class Outcomes:
    """How calls ended: seconds from their arrival, by what came of them."""

    answered: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    late_begun: int = 0
    """Late ones that had got tokens: work that was of no use."""
    refused: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description="Goodput under overload.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"at each load; default: {SECONDS:g}")
    parser.add_argument("--quick", action="store_true", help="a few seconds each, to see that all of it runs")
    options = parser.parse_args(arguments)
    seconds = QUICK_SECONDS if options.quick else options.seconds
    name = f"{NAME}_quick" if options.quick else NAME
    limits = ("--max-running", MAX_RUNNING, "--max-waiting", MAX_WAITING)
    with (
        TemporaryDirectory() as directory,
        serving("--model", endless_model(Path(directory)), *limits) as server,
        Client(server.address) as client,
        client.documents.create(read_tokens(NOVEL, DOCUMENT_TOKENS).tolist(), document_id=ID),
    ):
        result = asyncio.run(measured(server.address, seconds))
    save(name, {**result, "bars": [{**asdict(bar), "met": bar.met} for bar in bars(result)]})
    show(name, result)


async def measured(address: str, seconds: float) -> dict[str, Any]:
    """The most answers a second, and what comes of each load."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await closed_loop(stub, seconds / 4)  # warms up, the server's estimates included
        peak, service_seconds = await closed_loop(stub, seconds)
        deadline = DEADLINE_SERVICES * service_seconds
        loads = {load: await open_loop(stub, load * peak, deadline, seconds) for load in LOADS}
    return {
        "seconds": seconds,
        "most_answers_per_second": peak,
        "service_seconds": service_seconds,
        "deadline_seconds": deadline,
        "loads": [row(load, outcomes, seconds) for load, outcomes in loads.items()],
    }


async def closed_loop(stub: Any, seconds: float) -> tuple[float, float]:
    """Answers a second of as many callers as the server works for, and the median seconds of one."""
    outcomes, ends = Outcomes(), time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < ends:
            await ask(stub, None, outcomes)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(MAX_RUNNING)))
    return len(outcomes.answered) / (time.perf_counter() - began), statistics.median(outcomes.answered)


async def open_loop(stub: Any, rate: float, deadline: float, seconds: float) -> Outcomes:
    """Calls arrive so many a second, whatever becomes of them."""
    outcomes, chance = Outcomes(), random.Random(0)
    began, due, calls = time.perf_counter(), 0.0, []
    while due < seconds:
        await asyncio.sleep(began + due - time.perf_counter())
        calls.append(asyncio.create_task(ask(stub, deadline, outcomes)))
        due += chance.expovariate(rate)
    await asyncio.gather(*calls)
    return outcomes


async def ask(stub: Any, deadline: float | None, outcomes: Outcomes) -> None:
    """One call, and how it ends."""
    sampling = inference_pb2.SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0)
    request = inference_pb2.GenerateRequest(document_id=ID, sampling=sampling)
    began, begun = time.perf_counter(), False
    try:
        async for response in stub.Generate(request, timeout=deadline):
            begun = begun or response.HasField("tokens")
    except grpc.aio.AioRpcError as error:
        outcomes.late_begun += begun
        kinds = {grpc.StatusCode.RESOURCE_EXHAUSTED: outcomes.refused, grpc.StatusCode.DEADLINE_EXCEEDED: outcomes.late}
        kinds[error.code()].append(time.perf_counter() - began)
    else:
        outcomes.answered.append(time.perf_counter() - began)


def row(load: float, outcomes: Outcomes, seconds: float) -> dict[str, Any]:
    """The figures of one load."""
    refused = outcomes.refused
    return {
        "load": load,
        "calls": len(outcomes.answered) + len(outcomes.late) + len(refused),
        "answered": len(outcomes.answered),
        "late": len(outcomes.late),
        "late_begun": outcomes.late_begun,
        "refused": len(refused),
        "goodput_per_second": len(outcomes.answered) / seconds,
        "refusal_p50_seconds": quantile(refused, 0.5) if refused else None,
        "refusal_p99_seconds": quantile(refused, 0.99) if refused else None,
    }


def bars(result: dict[str, Any]) -> list[Bar]:
    """What is promised."""
    loads = {row["load"]: row for row in result["loads"]}
    best = max(row["goodput_per_second"] for row in result["loads"])
    found = []
    for load in OVERLOADS:
        goodput = loads[load]["goodput_per_second"] / best
        found.append(Bar(f"goodput at {load:g} × ÷ the best", goodput, least=LEAST_GOODPUT))
        refusal = loads[load]["refusal_p99_seconds"]
        found.append(Bar(f"seconds to refuse at {load:g} ×, p99", refusal, most=MOST_REFUSAL_SECONDS))
    return found


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f} ms"


def show(name: str, result: dict[str, Any]) -> None:
    """Prints the tables and draws the plot."""
    rows = [
        [
            f"{row['load']:g} ×",
            row["calls"],
            row["answered"],
            f"{row['late']} ({row['late_begun']})",
            row["refused"],
            f"{row['goodput_per_second']:.1f}",
            _milliseconds(row["refusal_p50_seconds"]),
            _milliseconds(row["refusal_p99_seconds"]),
        ]
        for row in result["loads"]
    ]
    header = ["load", "calls", "in time", "late (begun)", "refused", "goodput/s", "refusal p50", "refusal p99"]
    print(f"{result['most_answers_per_second']:.1f} answers/s at most; deadline {result['deadline_seconds']:.2f} s\n")
    print(markdown_table(header, rows))
    print(bar_table(bars(result)))
    with plot(name) as (axes,):
        loads = [row["load"] for row in result["loads"]]
        axes.plot(loads, [row["goodput_per_second"] for row in result["loads"]], marker="o", label="answered in time")
        axes.axhline(result["most_answers_per_second"], linestyle=":", color="gray", label="most answers a second")
        axes.set(
            xlabel="calls that arrive ÷ the most that can be answered", ylabel="answers a second", title="Overload"
        )
        axes.set_ylim(0, 1.2 * result["most_answers_per_second"])
        axes.legend()


if __name__ == "__main__":
    main()
