"""The benchmarks' harness: what it says about a child process has to be true."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import ChildError, in_child, markdown_table, time_interleaved


def hold(megabytes: int) -> int:
    return int(torch.ones(megabytes << 20, dtype=torch.uint8).numel())


def fail() -> None:
    raise ValueError("as expected")


def test_a_child_reports_its_own_peak_memory() -> None:
    small, large = in_child(hold, 1), in_child(hold, 200)
    assert large.value == 200 << 20
    assert 180 << 20 < large.peak_rss_bytes - small.peak_rss_bytes < 220 << 20


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(ChildError, match="ValueError: as expected"):
        in_child(fail)
    with pytest.raises(ChildError, match="memory"):
        in_child(hold, 2048, limit_bytes=1 << 30)
    with pytest.raises(ChildError, match="exit code 3"):
        in_child(os._exit, 3)
    with pytest.raises(ChildError, match=r"no result after 0\.1 s"):
        in_child(time.sleep, 60, timeout_seconds=0.1)


def test_peak_memory_can_begin_again() -> None:
    hold(100)
    harness.reset_peak_rss()
    before = harness.peak_rss_bytes()
    hold(50)
    assert 45 << 20 < harness.peak_rss_bytes() - before < 60 << 20


def test_contenders_take_turns() -> None:
    turns: list[str] = []
    timings = time_interleaved({"a": lambda: turns.append("a"), "b": lambda: time.sleep(0.01)}, repeats=3)
    assert len(turns) == 4  # the warm-up
    assert timings["a"].max_seconds < 0.01 <= timings["b"].min_seconds <= timings["b"].median_seconds
    assert timings["b"].repeats == 3


def test_results_carry_command_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.orig_argv", ["/usr/bin/python3", "-m", "benchmarks.some", "two words"])
    path = harness.save("some", {"timing": harness.Timing(2.0, 1.0, 3.0, 5)})
    record = json.loads(path.read_text())
    assert path.name == "some.json"
    assert record["command"] == "python -m benchmarks.some 'two words'"
    assert record["timing"] == {"median_seconds": 2.0, "min_seconds": 1.0, "max_seconds": 3.0, "repeats": 5}
    assert record["environment"]["versions"]["torch"] == torch.__version__
    with pytest.raises(TypeError, match="Tensor"):
        harness.save("other", {"loss": torch.zeros(1)})


def test_plot_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "IMAGES", tmp_path)
    with harness.plot("picture", panels=2) as (left, right):
        left.plot([1, 2], [3, 4], label="left")
        right.plot([1, 2], [4, 3], label="right")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert markdown_table(["a", "b"], [["x", 1.23456], [2, "y"]]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| x | 1.23 |",
        "| 2 | y |",
    ]
