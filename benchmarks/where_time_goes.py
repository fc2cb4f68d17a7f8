"""Where the time goes when a document is read and when a token is decoded, by stage, against the machine's limits.

    python -m benchmarks.where_time_goes            # a few minutes
    python -m benchmarks.where_time_goes --quick    # a short document

The limits are measured in the same run: how fast the machine multiplies large matrices, in turns with what it limits,
and how fast it copies memory.
Reading a document is bound by the first: in each stage, the matrix products of the algorithm at that rate. A decode
step is bound by the second: weights, and keys and values of the windows, each read once.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from unittest.mock import patch

import click
import torch

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, embedded_engine, read_tokens, token_seconds
from benchmarks.harness import markdown_table, save
from benchmarks.stages import Place, timed_stages
from benchmarks.work import decode_reads, memory_rate, multiplication_rate, multiplications
from reformer_core import (
    Document,
    Engine,
    ReformerModel,
    bucket_index,
    decode_graphs,
    decoding,
    incremental,
    local_attention,
    lsh_pass,
)
from reformer_core.feed_forward import FeedForward
from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention

DOCUMENT_TOKENS, QUICK_DOCUMENT_TOKENS = 65536, 4096
DECODED_TOKENS = 200
TURNS = 7
REST = "everything else"


@dataclass(frozen=True)
class Stage:
    """Milliseconds of a stage, and the least that it could take."""

    name: str
    milliseconds: float
    limit_milliseconds: float | None
    """None: it has nothing to multiply, or next to nothing to read."""


def common_stages(model: ReformerModel) -> dict[str, list[Place]]:
    """What reading and decoding share."""
    return {
        "embed": [(ReformerModel, "embed")],
        "project": [(LSHAttention, "project"), (LocalAttention, "project")],
        "hash": [(LSHAttention, "hash")],
        "output": [(layer.attention.output, "forward") for layer in model.reversible_layers],
        "feed-forward": [(FeedForward, "forward")],
        "head": [(ReformerModel, "logits")],
        REST: [(Engine, "step")],
    }


def reading_stages(model: ReformerModel) -> dict[str, list[Place]]:
    """Reading a document."""
    return common_stages(model) | {
        "keys and values to pages": [(lsh_pass.LSHPass, "_project")],
        "sort": [(lsh_pass, name) for name in ("sorted_order", "write_order", "bucket_offsets")],
        "gather windows": [(lsh_pass.LSHPass, "_attend_window")],
        "attend, LSH": [(lsh_pass, "attend_slots")],
        "attend, local": [(local_attention, "attend_slots")],
        "combine rounds": [(lsh_pass._Rounds, "add")],
    }


def decoding_stages(model: ReformerModel) -> dict[str, list[Place]]:
    """Decoding a token."""
    return common_stages(model) | {
        "keys and values to pages": [(incremental, "_store")],
        "find the windows": [(bucket_index.Windows, "positions"), (bucket_index.Tail, "append")],
        "gather windows": [(incremental, "_attend_seen")],
        "attend": [(incremental, "_attend")],
        "sample": [(decoding, "sample")],
    }


@dataclass(frozen=True)
class Reading:
    """Of a document, with its scores."""

    seconds: float
    """The median."""
    rate: float
    """Floating-point operations a second that the machine multiplied in between, the median."""
    stages: list[Stage]
    """Of one more reading."""
    document: Document


def measure_reading(engine: Engine, token_ids: torch.Tensor, measured_rate: Callable[[], float]) -> Reading:
    """Reads the document some times, with the machine's rate in turns."""
    seconds, rates = [], []
    for _ in range(1 + TURNS):
        rates.append(measured_rate())
        began = perf_counter()
        document = engine.prefill(token_ids, keep_scores=True)
        seconds.append(perf_counter() - began)
        document.close()
    rate = statistics.median(rates[1:])
    with timed_stages(reading_stages(engine.model)) as times:
        document = engine.prefill(token_ids, keep_scores=True)
    limits = {stage: len(token_ids) * work / rate for stage, work in multiplications(engine.model.config).items()}
    return Reading(statistics.median(seconds[1:]), rate, _stages(times.seconds, limits), document)


def measure_decoding(engine: Engine, document: Document, rate: float) -> tuple[float, list[Stage]]:
    """Seconds a token, the median; and the stages of one more stream, a token's share, whose steps aren't recorded."""
    seconds = [token for _ in range(1 + TURNS) for token in token_seconds(engine, document, DECODED_TOKENS)]
    with patch.object(decode_graphs, "RECORDED_WORK", 0), timed_stages(decoding_stages(engine.model)) as times:
        token_seconds(engine, document, DECODED_TOKENS)
    a_token = {stage: total / DECODED_TOKENS for stage, total in times.seconds.items()}
    reads = decode_reads(engine.model.config, engine.model.dtype.itemsize)
    return statistics.median(seconds[DECODED_TOKENS:]), _stages(
        a_token, {stage: count / rate for stage, count in reads.items()}
    )


def _stages(seconds: Mapping[str, float], limits: Mapping[str, float]) -> list[Stage]:
    """The slowest first, and the rest last."""
    order = sorted(seconds, key=lambda name: (name == REST, -seconds[name]))
    return [Stage(name, 1e3 * seconds[name], 1e3 * limits[name] if name in limits else None) for name in order]


def stage_table(stages: Sequence[Stage]) -> str:
    """A row a stage, and their sums."""
    total = sum(stage.milliseconds for stage in stages)
    limit = sum(stage.limit_milliseconds or 0 for stage in stages)
    rows = []
    for stage in [*stages, Stage("together", total, limit)]:
        share = f"{stage.milliseconds / total:.0%}"
        bound, reached = "–", "–"
        if stage.limit_milliseconds is not None:
            bound = f"{stage.limit_milliseconds:.3g}"
            reached = f"{stage.limit_milliseconds / stage.milliseconds:.0%}"
        rows.append([stage.name, f"{stage.milliseconds:.3g}", share, bound, reached])
    return markdown_table(["stage", "ms", "share", "limit, ms", "limit ÷ ms"], rows)


@click.command()
@click.option("--quick", is_flag=True, help="A short document.")
def main(quick: bool) -> None:
    """Measures, writes benchmarks/results/where_time_goes.json, and prints the tables."""
    tokens = QUICK_DOCUMENT_TOKENS if quick else DOCUMENT_TOKENS
    engine = embedded_engine(max_running=1)
    dtype, token_ids = engine.model.dtype, read_tokens(NOVEL, tokens)
    bandwidth = memory_rate()
    reading = measure_reading(engine, token_ids, lambda: multiplication_rate(dtype))
    token, decoded = measure_decoding(engine, reading.document, bandwidth)
    bound = tokens * sum(multiplications(engine.model.config).values()) / reading.rate
    bars = [Bar(f"reading {tokens:,} tokens: bound by matrix products ÷ measured", bound / reading.seconds, least=0.45)]
    record = {
        "dtype": str(dtype),
        "multiplication_rate": reading.rate,
        "memory_rate": bandwidth,
        "tokens": tokens,
        "read_seconds": reading.seconds,
        "seconds_a_token": token,
        "reading": [asdict(stage) for stage in reading.stages],
        "decoding": [asdict(stage) for stage in decoded],
        "bars": [{**asdict(bar), "met": bar.met} for bar in bars],
    }
    save("where_time_goes_quick" if quick else "where_time_goes", record)
    print(f"{dtype}: {reading.rate / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
    print(f"\nreading {tokens:,} tokens: {tokens / reading.seconds:,.0f} tokens/s")
    print(stage_table(reading.stages))
    print(f"\ndecoding after them: {1e3 * token:.2f} ms a token; by stage, without what recorded steps save:")
    print(stage_table(decoded))
    print(bar_table(bars))


if __name__ == "__main__":
    main()
