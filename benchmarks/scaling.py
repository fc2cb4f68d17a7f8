"""How many replicas it takes: a model of docs/scaling.md, from the memory plan and measured service times.

    python -m benchmarks.scaling [--documents 1000000 --tokens 100000 --memory 64GiB --calls 50]

Nothing is measured here. What a document takes comes from `MemoryPlan`; how long things take, from the results of
`benchmarks.restore`, `benchmarks.first_token` and `benchmarks.streams`, of the embedded text model, on the machine that
made them: `--results` names a folder with others.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, markdown_table, save
from reformer_core import MemoryPlan, embedded_model_path, load_config
from reformer_server.fitting import Fitting
from reformer_server.units import parse_size

NAME = "scaling"
BATCH = 16  # streams together, of `benchmarks.streams`
MAX_RUNNING = 64  # the server's default
BUSY = 0.7
"""Share of its time that an engine may be busy on average: above it, calls wait longer than they take."""


@dataclass(frozen=True)
class ServiceTimes:
    """What one replica's engine needs for each kind of work, in seconds, while it does nothing else."""

    machine: str
    read_token: float
    restore_byte: float
    first_token: float
    answer_token: float
    """With a full batch: a stream alone takes longer."""

    @classmethod
    def measured(cls, results: Path) -> "ServiceTimes":
        """From the files of the benchmarks."""
        restore, first, streams = (_result(results, name) for name in ("restore", "first_token", "streams"))
        machine = restore["environment"]
        longest = max(first["waits"], key=lambda wait: wait["tokens"])
        return cls(
            machine=machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores",
            read_token=restore["read_seconds"] / restore["tokens"],
            restore_byte=restore["restore_seconds"]["disk"] / restore["document_bytes"],
            first_token=longest["first_seconds"],
            answer_token=1 / streams["tokens_a_second"]["server and SDK"][str(BATCH)],
        )


@dataclass(frozen=True)
class Demand:
    """What the whole cluster has to serve."""

    documents: int
    tokens: int
    """Length of each."""
    calls_per_second: float
    """Generate calls about documents."""
    answer_tokens: int
    asked_share: float
    """Of the documents: those that are asked about again and again, and should be in memory."""
    restored_share: float
    """Of the calls: those about another document, which comes from the store."""
    new_share_per_day: float
    """Of the documents: those that are uploaded and read in a day."""


@dataclass(frozen=True)
class Need:
    """What that takes."""

    document_bytes: int
    store_bytes: int
    documents_in_memory: int
    """Of one replica."""
    call_seconds: float
    """An engine's time for a call, restores included."""
    store_bytes_per_second: float
    """That all replicas together read from the store."""
    replicas: dict[str, int]
    """By what makes them necessary."""

    @property
    def first_to_saturate(self) -> str:
        """What takes the most replicas."""
        return max(self.replicas, key=lambda reason: self.replicas[reason])


def need(demand: Demand, times: ServiceTimes, plan: MemoryPlan, memory_bytes: int) -> Need:
    """The formulas.

    Raises:
        ValueError: a replica with so much memory holds no such document.
    """
    held = Fitting.of(plan, memory_bytes, MAX_RUNNING).documents
    if not held:
        raise ValueError(f"{memory_bytes:,} bytes are too little for a document of {plan.tokens:,} tokens")
    answer_seconds = times.first_token + demand.answer_tokens * times.answer_token
    restore_seconds = times.restore_byte * plan.page_bytes
    call_seconds = answer_seconds + demand.restored_share * restore_seconds
    read_per_second = demand.documents * demand.new_share_per_day * demand.tokens / 86_400
    restores_per_second = demand.calls_per_second * demand.restored_share
    # A stream lasts as long as its batch needs for its tokens; so many are under way at once (Little's law).
    streams = demand.calls_per_second * (
        times.first_token + demand.answer_tokens * times.answer_token * BATCH + demand.restored_share * restore_seconds
    )
    return Need(
        document_bytes=plan.document_bytes,
        store_bytes=demand.documents * plan.document_bytes,
        documents_in_memory=held,
        call_seconds=call_seconds,
        store_bytes_per_second=restores_per_second * plan.page_bytes,
        replicas={
            "memory": math.ceil(demand.documents * demand.asked_share / held),
            "time for calls": math.ceil(demand.calls_per_second * call_seconds / BUSY),
            "time for reading": math.ceil(read_per_second * times.read_token / BUSY),
            "streams at once": math.ceil(streams / MAX_RUNNING),
        },
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description="How many replicas it takes.")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=100_000, help="of each document")
    parser.add_argument("--memory", type=parse_size, default=parse_size("64GiB"), help="of a replica; default: 64GiB")
    parser.add_argument("--calls", type=float, default=50.0, help="a second; default: 50")
    parser.add_argument("--answer-tokens", type=int, default=100, help="of a call; default: 100")
    parser.add_argument("--asked-share", type=float, default=0.01, help="of documents in memory; default: 0.01")
    parser.add_argument("--restored-share", type=float, default=0.05, help="of calls; default: 0.05")
    parser.add_argument("--new-share", type=float, default=0.01, help="of documents, read in a day; default: 0.01")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the measured times")
    options = parser.parse_args(arguments)
    times = ServiceTimes.measured(options.results)
    records = []
    for documents in sorted({options.documents // 100, options.documents // 10, options.documents} - {0}):
        part = documents / options.documents
        demand = Demand(
            documents,
            options.tokens,
            options.calls * part,
            options.answer_tokens,
            options.asked_share,
            options.restored_share,
            options.new_share,
        )
        plan = MemoryPlan(load_config(embedded_model_path()), torch.bfloat16, options.tokens)
        records.append((demand, need(demand, times, plan, options.memory)))
    rows = [{"demand": asdict(demand), "need": asdict(found)} for demand, found in records]
    save(NAME, {"memory_bytes": options.memory, "times": asdict(times), "rows": rows})
    print(tables(times, records))


def tables(times: ServiceTimes, records: Sequence[tuple[Demand, Need]]) -> str:
    """What things take, and the replicas."""
    demand, found = records[-1]
    facts = [
        ["a document in memory, or in the store", f"{found.document_bytes / 1e6:,.0f} MB"],
        ["documents in a replica's memory", f"{found.documents_in_memory:,}"],
        ["reading a document", f"{demand.tokens * times.read_token:.1f} s"],
        ["restoring one", f"{found.document_bytes * times.restore_byte:.2f} s"],
        ["a call, restores included", f"{found.call_seconds:.2f} s of a replica's time"],
    ]
    header = [
        "documents",
        "calls a second",
        "store",
        "from the store",
        *found.replicas,
        "replicas",
        "first to saturate",
    ]
    rows = [
        [
            f"{demand.documents:,}",
            f"{demand.calls_per_second:g}",
            f"{found.store_bytes / 1e12:,.1f} TB",
            f"{found.store_bytes_per_second / 1e9:,.2f} GB/s",
            *found.replicas.values(),
            f"**{max(found.replicas.values())}**",
            found.first_to_saturate,
        ]
        for demand, found in records
    ]
    return f"{markdown_table([times.machine, ''], facts)}\n\n{markdown_table(header, rows)}"


def _result(results: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    main()
