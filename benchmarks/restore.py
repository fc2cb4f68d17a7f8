"""How long a document takes to come back from the store, against reading it: the embedded text model, through the SDK.

    python -m benchmarks.restore [--tokens 500000]
    python -m benchmarks.restore --quick

One server reads a novel's worth of text and stores it. Then, again and again, a new server gets a question about it:
until its first token comes, the document is restored, once from the disk and once from the system's cache of it.
Tokens and scores have to be those of the first server, bit for bit.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, read_tokens
from benchmarks.harness import markdown_table, save
from benchmarks.serving import length_options, serving_embedded
from reformer_client import Client, Document

NAME, ID = "restore", "novel"
TOKENS, REPEATS = 500_000, 3
QUICK_TOKENS, QUICK_REPEATS = 8192, 1
STREAM_TOKENS = 33
LEAST_TIMES_FASTER = 10.0
SOURCES = ("disk", "system's cache")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    what = "How long a document takes to come back from the store, against reading it."
    name, tokens, quick = length_options(NAME, what, arguments, tokens=TOKENS, quick_tokens=QUICK_TOKENS)
    with tempfile.TemporaryDirectory() as store:
        result = measured(Path(store), tokens, QUICK_REPEATS if quick else REPEATS)
    save(name, {**result, "bars": [{**asdict(bar), "met": bar.met} for bar in bars(result)]})
    print(tables(result))


def measured(store: Path, tokens: int, repeats: int) -> dict[str, Any]:
    """Seconds of the reading, of writing behind, and medians of the restores."""
    token_ids = read_tokens(NOVEL, tokens).tolist()
    with serving_embedded(tokens, "--store", store) as server, Client(server.address) as client:
        reports: list[float] = []
        began = time.perf_counter()
        document = client.documents.create(
            token_ids, document_id=ID, keep_scores=True, on_progress=lambda _: reports.append(time.perf_counter())
        )
        read_seconds = reports[-1] - began  # that it is read is told before the store has it
        while not client.documents.get(ID).stored:
            time.sleep(0.01)
        stored_seconds = time.perf_counter() - began - read_seconds
        cold, document_bytes = answer(document), document.memory_bytes
        server.stop()
    restores: dict[str, list[float]] = {source: [] for source in SOURCES}
    for _ in range(repeats):
        for source in SOURCES:
            if source == "disk":
                forget(store)
            with serving_embedded(tokens, "--store", store) as server, Client(server.address) as client:
                began = time.perf_counter()
                first = client.documents.get(ID)
                next(iter(first.generate(max_tokens=1)))
                restores[source].append(time.perf_counter() - began)
                if answer(first) != cold:
                    raise RuntimeError("a restored document doesn't give what it gave before")
    return {
        "tokens": tokens,
        "document_bytes": document_bytes,
        "read_seconds": read_seconds,
        "stored_seconds": stored_seconds,
        "restore_seconds": {source: statistics.median(seconds) for source, seconds in restores.items()},
        "all_restore_seconds": restores,
    }


def answer(document: Document) -> tuple[list[tuple[int, float]], bytes]:
    """Greedy tokens with their log-probabilities, and all scores."""
    tokens = document.generate(max_tokens=STREAM_TOKENS, temperature=0.0)
    return [(token.id, token.logprob) for token in tokens], bytes(document.scores().logprobs)


def forget(folder: Path) -> None:
    """Asks the system to drop what it has in memory of these files."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def bars(result: dict[str, Any]) -> list[Bar]:
    """What is promised."""
    return [
        Bar(
            f"times faster than reading, from the {source}",
            result["read_seconds"] / result["restore_seconds"][source],
            least=LEAST_TIMES_FASTER,
        )
        for source in SOURCES
    ]


def tables(result: dict[str, Any]) -> str:
    """What was measured, and the bars."""
    rows = [
        ["reading it", f"{result['read_seconds']:.1f} s"],
        ["writing it behind", f"{result['stored_seconds']:.1f} s"],
    ]
    rows += [
        [f"restored from the {source}, first token included", f"{seconds:.2f} s"]
        for source, seconds in result["restore_seconds"].items()
    ]
    header = [f"{result['tokens']:,} tokens, {result['document_bytes'] / 2**20:,.0f} MiB", "time"]
    return f"{markdown_table(header, rows)}\n\n{bar_table(bars(result))}"


if __name__ == "__main__":
    main()
