"""Memory and time of a training step, against the number of layers and the length of the sequence.

    python -m benchmarks.train_memory            # everything; the longest step reads 524,288 tokens
    python -m benchmarks.train_memory --quick    # small, for a look

A step is forward, backward and an AdamW update, in a process of its own. Contenders, all with the configuration of the
embedded text model:

- rebuilt: the backward pass rebuilds each layer's inputs, as `ReformerModel.loss` does with all but small batches;
- kept: the same layers under plain autograd, as it does with small ones;
- transformers: Hugging Face's Reformer, whose positions have to be as many as the sequence has tokens.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import nn

from benchmarks.harness import (
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
from reformer_core.placement import cpu_multiplies_bfloat16
from reformer_core.train.configurations import text_config

CONTENDERS = {
    "rebuilt": "reformer-serve, activations rebuilt",
    "kept": "the same, activations kept",
    "transformers": "transformers",
}
LIMIT_BYTES = 16 << 30  # a contender that needs more, or more time, is out
LIMIT_SECONDS = 3600.0
MEASURED_SECONDS = 10.0  # short steps are repeated for so long
GIB = 1 << 30


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


def measure(case: Case) -> Step:
    """Takes steps in this process, a new one."""
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
    while not wall or sum(wall) < MEASURED_SECONDS:
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
    median = sorted(range(len(core)), key=core.__getitem__)[len(core) // 2]
    return Step(
        case.contender,
        case.layers,
        case.tokens,
        peak,
        peak - before - gradient_bytes,
        core[median],
        wall[median],
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
    reversible.KEPT_BYTES = 0 if case.contender == "rebuilt" else sys.maxsize
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


def read_tokens(text: Path, count: int) -> torch.Tensor:
    """The text's token ids, int64 [count], repeated if it is shorter."""
    ids = load_tokenizer(embedded_model_path()).encode(text.read_bytes()).long()
    return ids.repeat(-(-count // len(ids)))[:count]


def run(cases: Iterable[Case]) -> Iterator[Step]:
    """Steps of one contender, ever larger, until one takes too much."""
    for case in cases:
        try:
            step = in_child(measure, case, limit_bytes=LIMIT_BYTES, timeout_seconds=LIMIT_SECONDS).value
        except ChildError as error:
            reason = str(error).strip().splitlines()[-1]
            print(f"{case.contender}, {case.layers} layers, {case.tokens} tokens: {reason}", flush=True)
            return
        print(
            f"{step.contender}, {step.layers} layers, {step.tokens} tokens: {step.peak_rss_bytes / GIB:.2f} GiB, "
            f"{step.wall_seconds:.1f} s, {1e6 * step.core_seconds / step.tokens:.0f} µs a token",
            flush=True,
        )
        yield step


def show(
    by_depth: dict[str, list[Step]], by_length: dict[str, list[Step]], depths: list[int], lengths: list[int]
) -> None:
    """Prints the tables and draws the plot."""
    rows: list[list[Any]] = []
    for name, steps in by_depth.items():
        mebibytes = [f"{step.activation_bytes / (1 << 20):,.0f}" for step in steps]
        complete = len(steps) == len(depths)
        ratio = f"{steps[-1].activation_bytes / steps[0].activation_bytes:.2f}" if complete else "–"
        rows.append([CONTENDERS[name], *mebibytes, *["–"] * (len(depths) - len(steps)), ratio])
    print(markdown_table(["MiB", *(f"{depth} layers" for depth in depths), "last ÷ first"], rows), end="\n\n")

    def length_table(corner: str, cell: Callable[[Step], str]) -> str:
        rows = [
            [CONTENDERS[name], *map(cell, steps), *["–"] * (len(lengths) - len(steps))]
            for name, steps in by_length.items()
        ]
        return markdown_table([corner, *(f"{length:,}" for length in lengths)], rows)

    print(length_table("µs a token", lambda step: f"{1e6 * step.core_seconds / step.tokens:.0f}"), end="\n\n")
    print(length_table("peak RSS, GiB", lambda step: f"{step.peak_rss_bytes / GIB:.2f}"))
    with plot("train_memory", panels=2) as (depth_axes, length_axes):
        for name, label in CONTENDERS.items():
            depth_steps, length_steps = by_depth[name], by_length[name]
            depth_axes.plot(
                [step.layers for step in depth_steps],
                [step.activation_bytes / GIB for step in depth_steps],
                marker="o",
                label=label,
            )
            length_axes.plot(
                [step.tokens for step in length_steps],
                [1e6 * step.core_seconds / step.tokens for step in length_steps],
                marker="o",
                label=label,
            )
        depth_axes.set(
            xlabel="layers",
            ylabel="GiB",
            xticks=depths,
            ylim=(0, None),
            title=f"Peak memory of a step of {by_depth['rebuilt'][0].tokens:,} tokens,\nweights and optimiser aside",
        )
        length_axes.set(
            xlabel="tokens of the one sequence",
            ylabel="µs a token",
            xscale="log",
            ylim=(0, None),
            title="Processor time of a step,\n6 layers",
        )
        length_axes.set_xticks(lengths, [f"{length // 1024}K" for length in lengths], minor=False)
        length_axes.minorticks_off()
        depth_axes.legend()


@click.command()
@click.option("--quick", is_flag=True, help="Short sequences only: a minute or two.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What is read.")
def main(quick: bool, text: Path | None) -> None:
    """Measures training steps; writes benchmarks/results/train_memory.json and docs/images/train_memory.png."""
    text = text or ROOT / "examples" / "emma.txt"
    depths = [6, 12, 24]
    depth_tokens = 2048 if quick else 16384
    lengths = [1024, 2048, 4096] if quick else [4096, 16384, 65536, 262144, 524288]
    by_depth = {name: list(run(Case(name, depth, depth_tokens, text) for depth in depths)) for name in CONTENDERS}
    by_length = {name: list(run(Case(name, 6, length, text) for length in lengths)) for name in CONTENDERS}
    show(by_depth, by_length, depths, lengths)
    results: dict[str, Any] = {
        "limit_bytes": LIMIT_BYTES,
        "limit_seconds": LIMIT_SECONDS,
        "bfloat16": cpu_multiplies_bfloat16(),
    }
    for key, steps in (("by_depth", by_depth), ("by_length", by_length)):
        results[key] = {name: [asdict(step) for step in each] for name, each in steps.items()}
    save("train_memory_quick" if quick else "train_memory", results)


if __name__ == "__main__":
    main()
