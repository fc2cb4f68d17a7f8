"""Memory and time of a training step, against the number of layers and the length of the sequence.

    python -m benchmarks.train_memory            # everything; the longest step reads 524,288 tokens
    python -m benchmarks.train_memory --quick    # small, for a look

A step is forward, backward and an AdamW update, in a process of its own. Contenders, all with the configuration of the
embedded text model:

- rebuilt: the backward pass rebuilds each layer's inputs, as `ReformerModel.loss` does with all but small batches;
- kept: the same layers under plain autograd, as it does with small ones;
- transformers: Hugging Face's Reformer, whose positions have to be as many as the sequence has tokens.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import nn

from benchmarks.engines import read_tokens
from benchmarks.harness import (
    RESULTS,
    ROOT,
    ChildError,
    in_child,
    markdown_table,
    peak_rss_bytes,
    plot,
    reset_peak_rss,
    save,
)
from reformer_core import ReformerConfig, ReformerModel, embedded_model_path, load_tokenizer, reversible
from reformer_core.heap import map_large_tensors
from reformer_core.placement import cpu_multiplies_bfloat16
from reformer_core.train.configurations import text_config

CONTENDERS = {
    "rebuilt": "reformer-serve, activations rebuilt",
    "kept": "the same, activations kept",
    "transformers": "transformers",
}
LIMIT_BYTES = 8_000_000_000  # a contender that needs more data than this, or more time, is out
LIMIT_SECONDS = 3600.0
MEASURED_SECONDS = 5.0  # of processor time: shorter steps are repeated
DEPTH_RUNS = 3  # of each number of layers: what is compared there differs by a few per cent
MB, GB = 10**6, 10**9


@dataclass(frozen=True)
class Case:
    """One step to be measured."""

    contender: str
    layers: int
    tokens: int
    text: Path
    """What is read, as often as is needed."""


@dataclass(frozen=True)
class Step:
    """What a step took."""

    contender: str
    layers: int
    tokens: int
    peak_rss_bytes: int
    """Of the whole process."""
    activation_bytes: int
    """What the step added at its peak, gradients of the weights aside; nor are weights and optimiser state in it."""
    core_seconds: float
    """Processor time of all threads, the median step's: what else the machine does is not in it."""
    wall_seconds: float
    steps: int

    @property
    def microseconds_a_token(self) -> float:
        """Of processor time."""
        return 1e6 * self.core_seconds / self.tokens


def measure(case: Case) -> Step:
    """Takes steps in this process, a new one."""
    map_large_tensors()  # as `reformer train` does; for all contenders
    token_ids = read_tokens(case.text, case.tokens + 1)
    model, loss = build(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for parameter in model.parameters():  # so that the optimiser's state is there before the first step
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    reset_peak_rss()
    before, gradient_bytes = peak_rss_bytes(), sum(x.numel() * x.element_size() for x in model.parameters())
    core: list[float] = []
    wall: list[float] = []
    while sum(core) < MEASURED_SECONDS:
        began = time.process_time(), time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cpu_multiplies_bfloat16()):
            step_loss = loss(token_ids)
        step_loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        core.append(time.process_time() - began[0])
        wall.append(time.perf_counter() - began[1])
        assert math.isfinite(step_loss.item())
    peak = peak_rss_bytes()
    core, wall = core[1:] or core, wall[1:] or wall  # without a warm-up, if there were several
    return Step(
        case.contender,
        case.layers,
        case.tokens,
        peak,
        peak - before - gradient_bytes,
        statistics.median(core),
        statistics.median(wall),
        len(core),
    )


def build(case: Case) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """A contender's model, and its mean loss on token ids, int64 [n + 1]."""
    config = configuration(case.layers, case.tokens)
    torch.manual_seed(0)
    if case.contender == "transformers":
        their_config = transformers.ReformerConfig(**config.to_dict())  # type: ignore[no-untyped-call]
        theirs = transformers.ReformerModelWithLMHead(their_config).train()  # type: ignore[no-untyped-call]
        return theirs, lambda ids: theirs(input_ids=ids[None, :-1], labels=ids[None, :-1]).loss
    reversible.KEPT_BYTES = reversible.GPU_KEPT_BYTES = 0 if case.contender == "rebuilt" else sys.maxsize
    model = ReformerModel(config).train()
    return model, lambda ids: model.loss(ids[None, :-1], ids[None, 1:], torch.tensor([0]))


def configuration(layers: int, tokens: int) -> ReformerConfig:
    """The embedded model's, with positions for so many tokens, a power of two."""
    rows = 1 << (tokens.bit_length() - 1) // 2
    assert rows * (tokens // rows) == tokens, tokens
    return replace(
        text_config(load_tokenizer(embedded_model_path()).vocab_size),
        attn_layers=("local", "lsh") * (layers // 2),
        axial_pos_shape=(rows, tokens // rows),
        max_position_embeddings=tokens,
    )


def run(cases: Iterable[Case], runs: int = 1) -> tuple[list[Step], str | None]:
    """Steps of one contender, ever larger, until one takes too much; and why it was the last.

    Of several runs of a case, it is the one whose peak is the median: single ones differ by some per cent.
    """
    steps: list[Step] = []
    for case in cases:
        what = f"{CONTENDERS[case.contender]}, {case.layers} layers, {case.tokens:,} tokens"
        try:
            several = [
                in_child(measure, case, limit_bytes=LIMIT_BYTES, timeout_seconds=LIMIT_SECONDS).value
                for _ in range(runs)
            ]
        except ChildError as error:
            reason = f"{what}: {str(error).strip().splitlines()[-1]}"
            print(reason, flush=True)
            return steps, reason
        step = sorted(several, key=lambda step: step.activation_bytes)[runs // 2]
        print(f"{what}: {step.peak_rss_bytes / GB:.2f} GB, {step.microseconds_a_token:.0f} µs a token", flush=True)
        steps.append(step)
    return steps, None


def show(name: str, by_depth: dict[str, list[Step]], by_length: dict[str, list[Step]]) -> None:
    """Prints the tables and draws the plot; what a contender couldn't do is a dash."""
    depths = max(([step.layers for step in steps] for steps in by_depth.values()), key=len)
    lengths = max(([step.tokens for step in steps] for steps in by_length.values()), key=len)

    def table(corner: str, columns: list[str], steps: dict[str, list[Step]], cell: Callable[[Step], str]) -> None:
        rows = [[CONTENDERS[who], *map(cell, each), *["–"] * (len(columns) - len(each))] for who, each in steps.items()]
        print(markdown_table([corner, *columns], rows), end="\n\n")

    table("MB", [f"{depth} layers" for depth in depths], by_depth, lambda step: f"{step.activation_bytes / MB:,.0f}")
    columns = [f"{length:,} tokens" for length in lengths]
    table("µs a token", columns, by_length, lambda step: f"{step.microseconds_a_token:.0f}")
    table("peak RSS, GB", columns, by_length, lambda step: f"{step.peak_rss_bytes / GB:.2f}")
    with plot(name, panels=2) as (left, right):
        for who in by_depth:
            memory = [(step.layers, step.activation_bytes / GB) for step in by_depth[who]]
            speed = [(step.tokens, step.microseconds_a_token) for step in by_length[who]]
            for axes, points in ((left, memory), (right, speed)):
                axes.plot(*zip(*points, strict=True), marker="o", label=CONTENDERS[who])
        tokens = next(steps[0].tokens for steps in by_depth.values() if steps)
        left.set(xlabel="layers", ylabel="GB", xticks=depths, title=f"Memory that a step of {tokens:,} tokens adds")
        right.set(xlabel="tokens in one sequence", ylabel="µs a token", xscale="log", title="Processor time, 6 layers")
        right.set_xticks(lengths, [f"{length // 1024}K" for length in lengths])
        right.minorticks_off()
        for axes in (left, right):
            axes.set_ylim(bottom=0)
        left.legend()


@click.command()
@click.option("--quick", is_flag=True, help="Short sequences only: a few minutes.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What is read.")
@click.option(
    "--contender",
    "contenders",
    type=click.Choice(list(CONTENDERS)),
    multiple=True,
    help="Measures this one; what was measured of the others stays. All, if not given.",
)
def main(quick: bool, text: Path | None, contenders: Sequence[str]) -> None:
    """Measures training steps; writes benchmarks/results/train_memory.json and docs/images/train_memory.png."""
    text = text or ROOT / "examples" / "emma.txt"
    depth_tokens = 2048 if quick else 16384
    lengths = [1024, 2048, 4096] if quick else [4096, 16384, 65536, 524288]
    name = "train_memory_quick" if quick else "train_memory"
    for who in contenders or CONTENDERS:
        deeper, deepest = run((Case(who, depth, depth_tokens, text) for depth in (6, 12, 24)), DEPTH_RUNS)
        longer, longest = run(Case(who, 6, length, text) for length in lengths)
        all_results = load(name)
        all_results[who] = {
            "by_depth": [asdict(step) for step in deeper],
            "by_length": [asdict(step) for step in longer],
            "stopped": [reason for reason in (deepest, longest) if reason],
        }
        limits = {"limit_bytes": LIMIT_BYTES, "limit_seconds": LIMIT_SECONDS}
        save(name, {"bfloat16": cpu_multiplies_bfloat16(), **limits, "contenders": all_results})
    measured = load(name)
    by_depth, by_length = (
        {who: [Step(**step) for step in results[key]] for who, results in measured.items()}
        for key in ("by_depth", "by_length")
    )
    show(name, by_depth, by_length)


def load(name: str) -> dict[str, Any]:
    """What was measured of each contender, by an earlier run as well."""
    path = RESULTS / f"{name}.json"
    contenders: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["contenders"] if path.exists() else {}
    return contenders


if __name__ == "__main__":
    main()
