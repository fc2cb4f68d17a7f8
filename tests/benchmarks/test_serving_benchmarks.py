"""The benchmarks that go through a server, as a user calls them in a hurry: what they record is what they measured."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cancellation, first_token, harness, million_tokens, neighbours, restore
from benchmarks.listener import Arrivals
from benchmarks.serving import quantile
from reformer_core import MemoryPlan, ReformerModel

Record = dict[str, Any]


@pytest.fixture
def quick_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Any], tuple[Record, str]]:
    """Runs a benchmark's command; returns its record and what it prints."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(million_tokens, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "IMAGES", tmp_path)

    def run(benchmark: Any) -> tuple[Record, str]:
        benchmark.main(["--quick"])
        return json.loads(
            (tmp_path / f"{benchmark.NAME}_quick.json").read_text(encoding="utf-8")
        ), capsys.readouterr().out

    return run


def test_million_tokens(quick_run: Callable[[Any], tuple[Record, str]], tmp_path: Path) -> None:
    record, printed = quick_run(million_tokens)
    assert record["tokens"] == million_tokens.QUICK_TOKENS
    assert 7 < record["bits_per_byte"] < 9, "random weights tell nothing of a byte"
    grown = record["peak_rss_bytes"] - record["loaded_rss_bytes"]
    assert grown < record["plan"]["pages"] + record["plan"]["workspace"] + 50e6  # what libraries take at first use
    assert "| 16,384 |" in printed
    log = (tmp_path / "million_tokens_quick.log").read_text(encoding="utf-8").splitlines()
    assert "bfloat16" in log[0]
    assert "16,384 tokens" in log[-1]
    assert all("peak so far" in line for line in log[1:-1])


def test_restore(quick_run: Callable[[Any], tuple[Record, str]]) -> None:
    record, printed = quick_run(restore)
    assert record["document_bytes"] > 4 * restore.QUICK_TOKENS
    assert set(record["restore_seconds"]) == set(restore.SOURCES)
    assert 0 < max(record["restore_seconds"].values()) < record["read_seconds"]
    assert "| times faster than reading, from the disk | ≥ 10 |" in printed


def test_neighbours(quick_run: Callable[[Any], tuple[Record, str]], tmp_path: Path) -> None:
    record, printed = quick_run(neighbours)
    for phase in ("idle", "beside"):
        found = record[phase]
        assert 0 < found["p50_seconds"] <= found["p99_seconds"] <= found["most_seconds"] < found["long_seconds"]
        assert len(found["short_seconds"]) == neighbours.SHORTS
        assert max(found["short_seconds"]) < found["long_seconds"]
    assert "speed of the reading" in printed
    assert (tmp_path / "neighbours_quick.png").stat().st_size > 10_000


def test_cancellation(quick_run: Callable[[Any], tuple[Record, str]]) -> None:
    record, printed = quick_run(cancellation)
    assert set(record["calls"]) == {"generate", "upload", "score"}
    for call in record["calls"].values():
        for seen, known in zip(call["seen"], call["known"], strict=True):
            assert 0 < known < seen < 5, "the document alone would have taken longer than that"
    assert "upload" in printed


def test_first_token(quick_run: Callable[[Any], tuple[Record, str]]) -> None:
    record, printed = quick_run(first_token)
    assert [wait["tokens"] for wait in record["waits"]] == 2 * [512, 8192]
    assert all(
        wait["steps"] == pytest.approx(wait["first_seconds"] / wait["step_seconds"], rel=2) for wait in record["waits"]
    )
    assert "five words" in printed


def test_the_model_is_as_large_as_it_should_be() -> None:
    with torch.device("meta"):
        model = ReformerModel(million_tokens.configuration())
    assert model.num_parameters == pytest.approx(148e6, rel=0.02)
    plan = MemoryPlan(model.config, million_tokens.DTYPE, model.config.max_tokens)
    assert million_tokens.planned_bytes(plan) < million_tokens.MOST_BYTES


@pytest.mark.parametrize(
    ("values", "share", "expected"), [([3.0], 0.99, 3.0), (range(1, 101), 0.99, 99), (range(1, 101), 0.5, 50)]
)
def test_quantile(values: Sequence[float], share: float, expected: float) -> None:
    assert quantile(list(reversed(values)), share) == expected


def test_gaps_are_those_of_a_stream_and_a_time() -> None:
    arrivals = Arrivals([[0.0, 1.0, 3.0, 6.0], [10.0, 14.0, 19.0]])
    assert arrivals.gaps(0.0, 20.0) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert arrivals.gaps(1.0, 14.0) == [2.0, 3.0, 4.0]


def measured(idle: tuple[float, float, float], beside: tuple[float, float, float]) -> Record:
    keys = ("p99_seconds", "long_seconds", "short_seconds")
    phases = {"idle": idle, "beside": beside}
    return {name: dict(zip(keys, (gap, long, [short]), strict=True)) for name, (gap, long, short) in phases.items()}


def test_bars_of_neighbours() -> None:
    met = neighbours.bars(measured(idle=(1.0, 60.0, 1.0), beside=(4.0, 100.0, 3.0)))
    assert [bar.met for bar in met] == [True, True, True]
    unmet = neighbours.bars(measured(idle=(1.0, 59.0, 1.0), beside=(4.1, 100.0, 3.1)))
    assert [bar.met for bar in unmet] == [False, False, False]
