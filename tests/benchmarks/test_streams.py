"""The benchmark of streams together: rates are of all streams, and the calls through a server are whole."""

from pathlib import Path

import pytest
import torch

from benchmarks import harness, streams
from benchmarks.harness import Timing
from benchmarks.streams import DIFFERENT, ONE, SERVER, bars, measure_engine, rates
from tests.core.engines import text_model, tiny_engine


def timings(seconds: dict[int, float]) -> dict[int, Timing]:
    return {count: Timing(each, each, each, 1) for count, each in seconds.items()}


def test_one_document_and_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "TOKENS", 3)
    monkeypatch.setattr(streams, "TURNS", 1)
    monkeypatch.setattr(streams, "read_tokens", lambda _, count: torch.arange(count) % 200)
    engine = tiny_engine(text_model())
    found = measure_engine(engine, (1, 2), 64)
    assert {kind: list(of_kind) for kind, of_kind in found.items()} == {ONE: [1, 2], DIFFERENT: [1, 2]}
    assert len(engine.documents) == 2


def test_rates_are_of_all_streams_together() -> None:
    found = rates({ONE: timings({1: 0.2, 16: 0.4}), SERVER: timings({1: 1.0, 16: 2.0})})
    assert found[ONE] == {1: 320.0, 16: 2560.0}
    assert found[SERVER] == {1: 256.0, 16: 2048.0}
    single, together = bars(found | {DIFFERENT: found[ONE]}, {"float16": 301.0, "float32": 200.0})[:2]
    assert single.what == "tokens/s of one stream, engine, float16"
    assert single.met
    assert together.measured == 8.0
    assert together.met


def test_a_server_generates_as_much_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SERVER_TOKENS", 5)
    found = streams.measure_server((1, 2), 64)
    assert list(found) == [1, 2]
    assert found[1].repeats == 3


def test_what_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "IMAGES", tmp_path)
    one = {1: 300.0, 2: 500.0, 4: 900.0}
    streams.show("picture", {ONE: one, DIFFERENT: one, SERVER: {1: 250.0, 4: 700.0}}, {"float16": 310.0})
    told = capsys.readouterr().out
    assert "| 2 | 500 (1.7 ×) | 500 (1.7 ×) | – |" in told
    assert "| 4 | 900 (3.0 ×) | 900 (3.0 ×) | 700 (2.8 ×) |" in told
    assert "| float16 | 310 |" in told
    assert (tmp_path / "picture.png").exists()
