"""The plot of a run, from its log."""

import json
from pathlib import Path
from typing import Any

import numpy
from matplotlib.figure import Figure
from PIL import Image

from reformer_core.train.plot import draw_plot, plot

STEPS: list[dict[str, Any]] = [
    {"step": step, "tokens": 100 * step, "phase": step // 6, "bits_per_byte": 8 / step, "learning_rate": 0.1, "loss": 1}
    for step in range(1, 11)
]
VALIDATION = {"step": 5, "tokens": 500, "validation_bits_per_byte": {"a.txt": 2.0, "b.txt": 3.0}}


def drawn(tmp_path: Path, entries: list[dict[str, Any]]) -> Figure:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return plot(tmp_path / "train.jsonl", "byte", ["short", "long"])


def test_shows_training_validation_learning_rate_and_phases(tmp_path: Path) -> None:
    losses, rates = drawn(tmp_path, [*STEPS[:5], VALIDATION, *STEPS[5:]]).axes
    training, *held_out = losses.get_lines()
    assert training.get_xdata().tolist() == [100 * step for step in range(1, 11)]  # type: ignore[union-attr]
    assert training.get_ydata().tolist() == [8 / step for step in range(1, 11)]  # type: ignore[union-attr]
    assert [(line.get_label(), list(line.get_ydata())) for line in held_out] == [("a.txt", [2.0]), ("b.txt", [3.0])]  # type: ignore[arg-type]
    assert [text.get_text() for text in losses.texts] == ["short", "long"]
    assert rates.get_ylabel() == "learning rate"


def test_what_was_repeated_after_a_crash_is_shown_once(tmp_path: Path) -> None:
    repeated = [{**entry, "bits_per_byte": 1.0} for entry in STEPS[5:]]
    training = drawn(tmp_path, [*STEPS[:8], *repeated]).axes[0].get_lines()[0]
    assert list(training.get_ydata()) == [8 / step for step in range(1, 6)] + [1.0] * 5  # type: ignore[arg-type]


def test_is_a_png_also_before_there_is_anything(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    draw_plot(tmp_path / "train.jsonl", tmp_path / "train.png", "byte", ["one"])
    with Image.open(tmp_path / "train.png") as image:
        assert image.format == "PNG"
        assert numpy.asarray(image.convert("L")).std() > 0
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "train.png"}
