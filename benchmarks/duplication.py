"""The paper's duplication task: how often a second w is told right, by the attention of training and of evaluation.

    python -m benchmarks.duplication [--length 256] [--steps 240] [--model FOLDER]

Trains four models, with full attention, LSH-1, LSH-2 and LSH-4, and evaluates each with full attention and with 1, 2, 4
and 8 hash rounds, on sequences that none was trained on. `--quick` takes a minute and shows that all of it runs.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.duplication_task import (
    CHUNK_LENGTH,
    OPTIMIZER,
    Rounds,
    accuracy,
    name_of,
    sequences,
    task_config,
    train,
    with_rounds,
)
from benchmarks.harness import markdown_table, plot, save
from reformer_core import ReformerModel, save_model

TRAINED: Sequence[Rounds] = (1, 2, 4, None)
EVALUATED: Sequence[Rounds] = (None, 8, 4, 2, 1)
SAVED: Rounds = 4
PAPER = {  # per cent, at length 1024: table 2 of arXiv 2001.04451
    "full": {"full": 100.0, "LSH-8": 94.8, "LSH-4": 92.5, "LSH-2": 76.9, "LSH-1": 52.5},
    "LSH-4": {"full": 0.8, "LSH-8": 100.0, "LSH-4": 99.9, "LSH-2": 99.4, "LSH-1": 91.9},
    "LSH-2": {"full": 0.8, "LSH-8": 100.0, "LSH-4": 99.9, "LSH-2": 98.1, "LSH-1": 86.8},
    "LSH-1": {"full": 0.8, "LSH-8": 99.9, "LSH-4": 99.6, "LSH-2": 94.8, "LSH-1": 77.9},
}
HELD_OUT_SEED = 1  # the training's is 0; a generator looks at 32 bits alone
LOG_STEPS = 20

Table = Mapping[str, Mapping[str, float]]
"""Per cent, by the attention of training and of evaluation."""


def main() -> None:
    """Trains, evaluates, prints and saves."""
    options = _options()
    quick = options.quick
    length, steps, rows = (256, 4, 2) if quick else (options.length, options.steps, options.rows)
    held_out = sequences(4 if quick else options.sequences, length, torch.Generator().manual_seed(HELD_OUT_SEED))
    table: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for rounds in TRAINED:
        name, began = name_of(rounds), time.monotonic()
        model = train(length, rounds, steps=steps, rows=rows, on_step=partial(tell, name))
        seconds[name] = time.monotonic() - began
        table[name] = evaluated(model, held_out)
        print(f"{name}: trained in {seconds[name]:.0f} s; accuracy in per cent: {table[name]}", flush=True)
        if rounds == SAVED and options.model:
            save_model(model.half(), options.model)
    print(f"\n{beside_paper(table)}\n")
    result = {
        "length": length,
        "chunk_length": CHUNK_LENGTH,
        "buckets": task_config(length, SAVED).total_buckets,
        "steps": steps,
        "sequences_per_step": rows,
        "learning_rate": OPTIMIZER.learning_rate,
        "held_out_sequences": len(held_out),
        "training_seconds": seconds,
        "accuracy_percent": table,
        "paper_percent": PAPER,
    }
    name = "duplication_quick" if quick else "duplication"
    print(save(name, result))
    draw(name, table, length)


def tell(name: str, step: int, loss: float) -> None:
    """Prints every so many steps how far a training is."""
    if step % LOG_STEPS == 0:
        print(f"{name}: step {step}, {loss:.4f} nats a symbol", flush=True)


def evaluated(model: ReformerModel, held_out: torch.Tensor) -> dict[str, float]:
    """A row of the table."""
    return {name_of(rounds): 100 * accuracy(with_rounds(model, rounds), held_out) for rounds in EVALUATED}


def beside_paper(table: Table) -> str:
    """Our figures, and the paper's in brackets."""
    return markdown_table(
        ["trained with \\ evaluated with", *map(name_of, EVALUATED)],
        [
            [name, *(f"{table[name][other]:.1f} ({percent:g})" for other, percent in row.items())]
            for name, row in PAPER.items()
        ],
    )


def draw(name: str, table: Table, length: int) -> None:
    """Both tables as heat maps, as docs/images/NAME.png."""
    columns = [name_of(rounds) for rounds in EVALUATED]
    with plot(name, panels=2) as panels:
        for axes, title, shown in zip(panels, (f"length {length}", "paper, length 1024"), (table, PAPER), strict=True):
            percents = [[shown[row][column] for column in columns] for row in PAPER]
            axes.imshow(percents, vmin=0, vmax=100, cmap="viridis", aspect="auto", zorder=2)  # over the grid
            axes.set_axisbelow(True)
            for y, row in enumerate(percents):
                for x, percent in enumerate(row):
                    colour = "black" if percent > 50 else "white"
                    axes.text(x, y, f"{percent:.1f}", ha="center", va="center", color=colour, zorder=3)
            axes.set_xticks(range(len(columns)), columns)
            axes.set_yticks(range(len(PAPER)), list(PAPER))
            axes.set(title=f"accuracy, % ({title})", xlabel="evaluated with", ylabel="trained with")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=256, help="Tokens of 0w0w, an even number.")
    parser.add_argument("--steps", type=int, default=240, help="Training steps of each model.")
    parser.add_argument("--rows", type=int, default=4, help="Sequences a step.")
    parser.add_argument("--sequences", type=int, default=200, help="Held-out sequences.")
    parser.add_argument("--model", type=Path, help=f"Folder for the model that was trained with {name_of(SAVED)}.")
    parser.add_argument("--quick", action="store_true", help="Short sequences, few steps: nothing is learned.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
