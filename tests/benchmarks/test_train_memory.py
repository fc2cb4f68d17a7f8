"""The benchmark of training memory: its contenders compute the same, and its tables say what was measured."""

from pathlib import Path

import pytest
import torch

from benchmarks import harness, train_memory
from benchmarks.train_memory import Case, Step
from reformer_core import reversible
from tests.core.live_memory import LiveMemory

TEXT = harness.ROOT / "examples" / "emma.txt"


def step(contender: str, layers: int, tokens: int, activation_bytes: int = 10**8) -> Step:
    return Step(contender, layers, tokens, 10**9, activation_bytes, tokens * 400e-6, 9.0, 1)


def test_contenders_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    token_ids = train_memory.read_tokens(TEXT, 129)
    losses, held_bytes = {}, {}
    for contender in ("rebuilt", "kept"):
        for name in ("KEPT_BYTES", "GPU_KEPT_BYTES"):  # set by the benchmark, restored by pytest
            monkeypatch.setattr(reversible, name, getattr(reversible, name))
        model, loss = train_memory.build(Case(contender, 4, 128, TEXT))
        with LiveMemory() as memory:
            losses[contender] = loss(token_ids)
        held_bytes[contender] = memory.bytes
        losses[contender].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(losses["rebuilt"], losses["kept"])
    assert held_bytes["kept"] > 1.5 * held_bytes["rebuilt"]


def test_transformers_has_the_same_configuration() -> None:
    ours, _ = train_memory.build(Case("rebuilt", 2, 256, TEXT))
    theirs, loss = train_memory.build(Case("transformers", 2, 256, TEXT))
    assert sum(x.numel() for x in theirs.parameters()) == sum(x.numel() for x in ours.parameters())
    assert loss(train_memory.read_tokens(TEXT, 257)).item() == pytest.approx(7, abs=1)  # log 1024, untrained


def test_a_short_text_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("She was so. ")
    ids = train_memory.read_tokens(tmp_path / "short.txt", 100)
    assert len(ids) == 100
    length = int((ids == ids[0]).nonzero()[1])
    assert torch.equal(ids[length:], ids[:-length])


def test_a_contender_that_needs_too_much_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps, reason = train_memory.run([Case("rebuilt", 2, 64, tmp_path / "missing.txt")])
    assert steps == []
    assert reason is not None
    assert "2 layers, 64 tokens" in reason
    assert "missing.txt" in reason


def test_what_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "IMAGES", tmp_path)
    by_depth = {who: [step(who, depth, 512) for depth in (6, 12, 24)] for who in train_memory.CONTENDERS}
    by_length = {who: [step(who, 6, length) for length in (1024, 4096)] for who in train_memory.CONTENDERS}
    by_length["transformers"].pop()
    train_memory.show("picture", by_depth, by_length)
    told = capsys.readouterr().out
    assert "| transformers | 400 | – |" in told
    assert "| reformer-serve, activations rebuilt | 100 | 100 | 100 |" in told
    assert (tmp_path / "picture.png").exists()
