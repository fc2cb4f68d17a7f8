"""The model of docs/scaling.md: its formulas, by cases that can be computed by hand, and its command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import harness, scaling
from benchmarks.scaling import Demand, ServiceTimes, need
from reformer_core import MemoryPlan, embedded_model_path, load_config

PLAN = MemoryPlan(load_config(embedded_model_path()), torch.float32, 100_000)
TIMES = ServiceTimes(
    machine="a machine", read_token=1e-3, restore_byte=1 / PLAN.page_bytes, first_token=0.5, answer_token=0.01
)
DEMAND = Demand(
    documents=10_000,
    tokens=100_000,
    calls_per_second=6.5,
    answer_tokens=50,
    asked_share=0.1,
    restored_share=0.5,
    new_share_per_day=0,
)
MEMORY = 64 << 30


def test_each_need_by_hand() -> None:
    found = need(DEMAND, TIMES, PLAN, MEMORY)
    assert found.store_bytes == 10_000 * found.document_bytes
    assert found.call_seconds == pytest.approx(0.5 + 50 * 0.01 + 0.5 * 1.0)
    assert found.store_bytes_per_second == pytest.approx(6.5 * 0.5 * PLAN.page_bytes)
    assert found.documents_in_memory == pytest.approx(MEMORY / PLAN.page_bytes, rel=0.1)
    assert found.replicas == {
        "memory": -(-1000 // found.documents_in_memory),
        "time for calls": 14,  # 6.5 of 1.5 s each, of which a replica does 0.7 in a second
        "time for reading": 0,
        "streams at once": 1,  # 6.5 a second, of 0.5 + 8 + 0.5 s each: 58.5
    }
    assert found.first_to_saturate == "time for calls"
    reading = need(replace(DEMAND, new_share_per_day=0.0864), TIMES, PLAN, MEMORY)
    assert reading.replicas["time for reading"] == 2  # 864 a day, of 100 s each: all the time of one, which has 0.7
    more = need(replace(DEMAND, calls_per_second=8), TIMES, PLAN, MEMORY)
    assert more.replicas["streams at once"] == 2  # 72 of them, and a replica takes 64


def test_a_memory_that_holds_none() -> None:
    with pytest.raises(ValueError, match="too little for a document of 100,000 tokens"):
        need(DEMAND, TIMES, PLAN, 100 << 20)


def test_the_command_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the page says is what the committed results give."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    scaling.main([])
    record = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))
    assert [row["demand"]["documents"] for row in record["rows"]] == [10_000, 100_000, 1_000_000]
    page = (harness.ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    for line in printed.splitlines():
        if line.startswith("| 1"):
            assert line.rpartition(" | ")[0] in page  # less the last column
