"""What a GPU makes of it: reading, scoring and decoding in float16, with CUDA graphs and without, and the memory.

    python -m benchmarks.gpu            # a few minutes, on a GPU with 40 GB or more
    python -m benchmarks.gpu --quick    # short texts

Two models: the embedded one, and one of 148 million random weights, which cost what trained ones do. Peaks are those of
torch's allocator; the engine gets the memory that its plan says and no more.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import click
import torch

from benchmarks.bars import Bar, bar_table
from benchmarks.engines import NOVEL, read_tokens, streams_seconds, token_seconds
from benchmarks.harness import markdown_table, save
from benchmarks.million_tokens import configuration
from reformer_core import Engine, MemoryPlan, ReformerModel, embedded_model_path, load_model

GPU = torch.device("cuda")
LENGTHS, QUICK_LENGTHS = (16_384, 131_072, 1_048_576), (4096, 16_384)
STREAMS, QUICK_STREAMS = (1, 4, 16, 64), (1, 4)
SHORT_CONTEXT, ROOM_TO_GO_ON = 4096, 4096
DECODED_TOKENS, TURNS, SESSIONS = 300, 3, 64
GB = 1e9


@dataclass(frozen=True)
class Reading:
    """A text that is read and kept, and one that is only scored."""

    tokens: int
    prefill_seconds: float
    score_seconds: float
    workspace_bytes: int
    """The peak while it is read, pages and weights aside."""
    planned_workspace_bytes: int
    document_bytes: int


@dataclass(frozen=True)
class Scoring:
    """The longest text in an engine that has just the memory for it."""

    tokens: int
    memory_bytes: int
    """What the engine was given."""
    peak_bytes: int
    """What torch allocated at most, weights included."""


@dataclass(frozen=True)
class Decoding:
    """Streams on one document."""

    context: int
    streams: int
    graphs: bool
    tokens_per_second: float
    token_milliseconds: float | None
    """The median of one stream's tokens; None for several streams."""


@contextmanager
def peak_bytes(found: list[int]) -> Iterator[None]:
    """Appends the most that was allocated inside the block beyond what was there before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.synchronize()
    found.append(torch.cuda.max_memory_allocated() - before)


def seconds(work: Callable[[], object]) -> float:
    """That it takes, the device's work included."""
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def measure_reading(model: ReformerModel, token_ids: torch.Tensor) -> Reading:
    """The medians of some turns after one that warms up."""
    plan = plan_for(model, len(token_ids))
    engine = Engine(model, memory_bytes=plan.serving_bytes(1), max_running=1, max_text_tokens=plan.tokens)
    prefills, scores, peaks = [], [], list[int]()
    for _ in range(1 + TURNS):
        with peak_bytes(peaks):
            prefills.append(seconds(lambda: engine.prefill(token_ids)))
        for document in list(engine.documents):
            document.close()
        scores.append(seconds(lambda: engine.score(token_ids)))
    return Reading(
        plan.tokens,
        statistics.median(prefills[1:]),
        statistics.median(scores[1:]),
        max(peaks),
        plan.workspace_bytes,
        plan.document_bytes,
    )


def measure_scoring(model: ReformerModel, token_ids: torch.Tensor) -> Scoring:
    """With memory for one request that scores, and nothing else."""
    plan = plan_for(model, len(token_ids))
    memory_bytes, peaks = plan.scoring_bytes(1), list[int]()
    with peak_bytes(peaks):
        engine = Engine(model, memory_bytes=memory_bytes, max_running=1, max_text_tokens=plan.tokens)
        engine.score(token_ids)
    return Scoring(plan.tokens, memory_bytes, peaks[0] + plan.weights_bytes)


def measure_decoding(model: ReformerModel, token_ids: torch.Tensor, streams: tuple[int, ...]) -> list[Decoding]:
    """One stream after a short and after a long document, and several on the short one."""
    plan = plan_for(model, len(token_ids))
    memory_bytes = plan.serving_bytes(SESSIONS) + 2**31
    engine = Engine(model, memory_bytes=memory_bytes, max_running=SESSIONS, max_text_tokens=plan.tokens)
    documents = {n: engine.prefill(token_ids[:n]) for n in (SHORT_CONTEXT, len(token_ids) - ROOM_TO_GO_ON)}
    steps, found = engine._scheduler._decoding._steps, []
    for graphs in (False, True):
        steps._use_graphs = graphs
        for context, document in documents.items():
            token_seconds(engine, document, 8)  # warms up, and records
            each = token_seconds(engine, document, DECODED_TOKENS)
            median = 1e3 * statistics.median(each)
            found.append(Decoding(context, 1, graphs, len(each) / sum(each), median))
        for count in streams[1:]:
            several = [documents[SHORT_CONTEXT]] * count
            streams_seconds(engine, several, 2)
            rate = count * DECODED_TOKENS / streams_seconds(engine, several, DECODED_TOKENS)
            found.append(Decoding(SHORT_CONTEXT, count, graphs, rate, None))
    return found


def plan_for(model: ReformerModel, tokens: int) -> MemoryPlan:
    """On this GPU."""
    return MemoryPlan(model.config, model.dtype, tokens, GPU)


def models(*, quick: bool) -> Iterator[tuple[str, ReformerModel]]:
    """One at a time: the embedded one, then the large one. Generations never end by themselves."""
    embedded = load_model(embedded_model_path(), device="cuda")
    embedded.config = replace(embedded.config, eos_token_id=None)
    yield "embedded text model", embedded
    torch.manual_seed(0)
    large = ReformerModel(configuration(quick=quick)).eval().requires_grad_(False)
    yield f"{large.num_parameters / 1e6:.0f}M parameters, bytes", large.to(GPU, torch.float16)


def measure(model: ReformerModel, lengths: tuple[int, ...], streams: tuple[int, ...]) -> dict[str, Any]:
    """All of one model."""
    text = read_tokens(NOVEL, max(lengths)) % model.config.vocab_size
    longest = text[: model.config.max_tokens]
    return {
        "reading": [asdict(measure_reading(model, text[:tokens])) for tokens in lengths],
        "scoring": asdict(measure_scoring(model, longest)),
        "decoding": [asdict(each) for each in measure_decoding(model, longest, streams)],
    }


def bars(found: dict[str, dict[str, Any]]) -> list[Bar]:
    """What is promised, for a GPU, too."""
    bars = []
    for name, result in found.items():
        one = [each for each in result["decoding"] if each["streams"] == 1 and each["graphs"]]
        growth = one[-1]["token_milliseconds"] / one[0]["token_milliseconds"]
        bars.append(Bar(f"{name}: a token at {one[-1]['context']:,} ÷ at {one[0]['context']:,}", growth, most=1.15))
        many = max((each for each in result["decoding"] if each["graphs"]), key=lambda each: each["streams"])
        ratio = many["tokens_per_second"] / one[0]["tokens_per_second"]
        bars.append(Bar(f"{name}: tokens/s of {many['streams']} streams ÷ one stream's", ratio, least=6))
        what = f"{name}: scoring {result['scoring']['tokens']:,} tokens, GB allocated"
        bars.append(Bar(what, result["scoring"]["peak_bytes"] / GB, most=16))
    return bars


def tables(found: dict[str, dict[str, Any]]) -> str:
    """What was measured, and the bars."""
    reading = [
        [
            name,
            f"{each['tokens']:,}",
            f"{each['prefill_seconds']:.2f} s ({each['tokens'] / each['prefill_seconds'] / 1e6:.2f}M/s)",
            f"{each['score_seconds']:.2f} s",
            f"{each['workspace_bytes'] / GB:.2f} ({each['planned_workspace_bytes'] / GB:.2f})",
            f"{each['document_bytes'] / GB:.2f}",
        ]
        for name, result in found.items()
        for each in result["reading"]
    ]
    decoding = [
        [
            name,
            f"{each['context']:,}",
            each["streams"],
            "yes" if each["graphs"] else "no",
            "" if each["token_milliseconds"] is None else f"{each['token_milliseconds']:.2f} ms",
            f"{each['tokens_per_second']:,.0f}",
        ]
        for name, result in found.items()
        for each in result["decoding"]
    ]
    headers = (
        ["model", "tokens", "read and kept", "scored", "workspace, GB (planned)", "document, GB"],
        ["model", "context", "streams", "graphs", "a token", "tokens/s together"],
    )
    return "\n\n".join([markdown_table(*pair) for pair in zip(headers, (reading, decoding), strict=True)])


@click.command()
@click.option("--quick", is_flag=True, help="Short texts and few streams, to see that all of it runs.")
def main(quick: bool) -> None:
    """Runs the benchmark."""
    if not torch.cuda.is_available():
        raise click.ClickException("there is no GPU that torch can use on this machine")
    lengths, streams = (QUICK_LENGTHS, QUICK_STREAMS) if quick else (LENGTHS, STREAMS)
    found = {name: measure(model, lengths, streams) for name, model in models(quick=quick)}
    save("gpu_quick" if quick else "gpu", {"models": found})
    print(tables(found))
    print()
    print(bar_table(bars(found)))


if __name__ == "__main__":
    main()
