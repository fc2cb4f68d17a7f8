"""The plot of a run: loss, validation and learning rate over the tokens, with its phases marked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_SHADE = "0.95"


def draw_plot(log_file: Path, image_file: Path, unit: str, phases: Sequence[str]) -> None:
    """Writes what `plot` gives as a PNG."""
    partial = image_file.with_suffix(".partial.png")
    plot(log_file, unit, phases).savefig(partial)
    partial.replace(image_file)


def plot(log_file: Path, unit: str, phases: Sequence[str]) -> Figure:
    """Args:
    log_file: a run's `train.jsonl`.
    unit: what bits are counted a unit of, as in the log.
    phases: each phase's title.
    """
    steps, validations = _entries(log_file)
    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    losses, rates = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    key = f"bits_per_{unit}"
    losses.plot([entry["tokens"] for entry in steps], [entry[key] for entry in steps], label="training", linewidth=1)
    names = dict.fromkeys(name for entry in validations for name in entry[f"validation_{key}"])
    for name in names:
        points = [(entry["tokens"], entry[f"validation_{key}"][name]) for entry in validations]
        losses.plot(*zip(*points, strict=True), label=name, marker=".")
    losses.set_ylabel(f"bits per {unit}")
    losses.grid(alpha=0.3)
    if steps or names:
        losses.legend()
    rates.plot([entry["tokens"] for entry in steps], [entry["learning_rate"] for entry in steps], color="0.3")
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    rates.grid(alpha=0.3)
    rates.set_xlabel("tokens")
    rates.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if len(phases) > 1:
        _mark_phases((losses, rates), steps, phases)
    return figure


def _entries(log_file: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those of steps, and those of validations.

    A resumed run repeats the steps after its checkpoint; the last entry counts.
    """
    entries: list[dict[str, Any]] = []
    for line in log_file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        first_repeated = entry["step"] + ("loss" not in entry)  # validation comes after its step
        while entries and entries[-1]["step"] >= first_repeated:
            entries.pop()
        entries.append(entry)
    steps = [entry for entry in entries if "loss" in entry]
    return steps, [entry for entry in entries if "loss" not in entry]


def _mark_phases(axes: Sequence[Axes], steps: Sequence[dict[str, Any]], phases: Sequence[str]) -> None:
    """Shades every second phase that has begun, and writes its title above it."""
    start = 0
    for index, title in enumerate(phases):
        own = [entry["tokens"] for entry in steps if entry["phase"] == index]
        if not own:
            continue
        for each in axes:
            each.axvspan(start, own[-1], color=_SHADE if index % 2 else "white", zorder=0)
        axes[0].annotate(
            title, ((start + own[-1]) / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
        start = own[-1]
