"""The command as a user calls it, on the embedded model and the beginning of a novel."""

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks import harness, text_model
from benchmarks.text_model import WHOLE, WINDOW, WITHOUT_LSH, main
from reformer_core import load_model
from reformer_core.embedded_model import embedded_model_path

EMMA = harness.ROOT / "examples" / "emma.txt"


def test_the_command_writes_tables_a_record_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "IMAGES", tmp_path)
    monkeypatch.setattr(text_model, "load_model", partial(load_model, dtype="float32"))  # less is left to rounding
    main([str(embedded_model_path()), "--held-out", str(EMMA), "--max-tokens", "1600"])
    tables = capsys.readouterr().out
    assert "| xz -9 |" in tables
    assert "| Reformer |" in tables
    record = json.loads((tmp_path / "text_model.json").read_text(encoding="utf-8"))
    whole, window, off = (record["by_position"][name] for name in (WHOLE, WINDOW, WITHOUT_LSH))
    assert whole["first 1K"] == pytest.approx(window["first 1K"], rel=2e-3), "nothing is outside the window yet"
    assert whole["1K–16K"] != window["1K–16K"]
    assert whole["all"] < off["all"]
    assert record["bits_per_byte"]["Reformer"]["emma.txt"] == pytest.approx(whole["all"])
    assert record["tokens"] == {"emma.txt": 1600}
    config = load_model(embedded_model_path()).config
    assert len(record["heads"]) == config.num_attention_heads * config.attn_layers.count("lsh")
    assert (tmp_path / "text_model.png").stat().st_size > 10_000


def test_a_5_gram_model_needs_texts_to_learn_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(embedded_model_path()), "--held-out", str(EMMA), "--kenlm", "somewhere"])
    assert "--training" in capsys.readouterr().err
