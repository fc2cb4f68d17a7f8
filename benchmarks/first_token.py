"""How long the first token takes after a document that the server has read: a novel's worth of it, or a page.

    python -m benchmarks.first_token [--tokens 500000]
    python -m benchmarks.first_token --quick

On the embedded text model, with and without a prompt; the two documents take turns. The unit is that stream's own
decode step, the median gap between its next tokens: what its reader waits for each of those.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, read_tokens
from benchmarks.harness import markdown_table, save
from benchmarks.serving import length_options, serving_embedded
from reformer_client import Client, Document

NAME = "first_token"
LONG_TOKENS, SHORT_TOKENS = 500_000, 5_000
REPEATS, STREAM_TOKENS = 20, 33
QUICK_TOKENS, QUICK_SHORT_TOKENS, QUICK_REPEATS = 8192, 512, 2
PROMPTS = {"none": None, "five words": "\n\nEmma was not"}
MOST_STEPS = 3.0

Wait = tuple[float, float]
"""Seconds until the first token, and between the next ones."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    what = "How long the first token takes after a document that was read before."
    name, long, quick = length_options(NAME, what, arguments, tokens=LONG_TOKENS, quick_tokens=QUICK_TOKENS)
    short, repeats = (QUICK_SHORT_TOKENS, QUICK_REPEATS) if quick else (SHORT_TOKENS, REPEATS)
    with serving_embedded(long + short) as server, Client(server.address) as client:
        waits = measured(client, (short, long), repeats)
    save(name, {"waits": waits, "bars": [{**asdict(bar), "met": bar.met} for bar in bars(waits)]})
    print(tables(waits))


def measured(client: Client, lengths: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Medians for each length and prompt, shortest document first."""
    token_ids = read_tokens(NOVEL, max(lengths)).tolist()
    documents = {tokens: client.documents.create(token_ids[:tokens]) for tokens in lengths}
    cases = [(tokens, prompt) for prompt in PROMPTS for tokens in lengths]
    waits: dict[tuple[int, str], list[Wait]] = {case: [] for case in cases}
    for turn in range(-1, repeats):  # the first one warms up
        for tokens, prompt in cases:
            wait = waited(documents[tokens], PROMPTS[prompt])
            if turn >= 0:
                waits[tokens, prompt].append(wait)
    return [
        {
            "tokens": tokens,
            "prompt": prompt,
            "first_seconds": statistics.median(first for first, _ in all_),
            "step_seconds": statistics.median(step for _, step in all_),
            "steps": statistics.median(first / step for first, step in all_),
        }
        for (tokens, prompt), all_ in waits.items()
    ]


def waited(document: Document, prompt: str | None) -> Wait:
    """One short generation, as its reader sees it."""
    began = time.perf_counter()
    ticks = [time.perf_counter() for _ in document.generate(prompt, max_tokens=STREAM_TOKENS, temperature=0.0)]
    first, *others = (after - before for before, after in pairwise([began, *ticks]))
    return first, statistics.median(others)


def bars(waits: Sequence[dict[str, Any]]) -> list[Bar]:
    """What is promised: the long document costs the first token hardly more than the short one."""
    return [
        Bar(f"decode steps that it takes longer, prompt: {prompt}", long["steps"] - short["steps"], most=MOST_STEPS)
        for prompt in PROMPTS
        for short, long in [[wait for wait in waits if wait["prompt"] == prompt]]
    ]


def tables(waits: Sequence[dict[str, Any]]) -> str:
    """What was measured, and the bars."""
    header = ["document", "prompt", "first token", "decode step", "in steps"]
    rows = [
        [
            f"{wait['tokens']:,} tokens",
            wait["prompt"],
            *(f"{1000 * wait[key]:.1f} ms" for key in ("first_seconds", "step_seconds")),
            f"{wait['steps']:.1f}",
        ]
        for wait in waits
    ]
    return f"{markdown_table(header, rows)}\n\n{bar_table(bars(waits))}"


if __name__ == "__main__":
    main()
