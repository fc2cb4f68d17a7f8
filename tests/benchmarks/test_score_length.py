"""The benchmark of scoring: contenders score the same text alike, and stop when it takes too much."""

from pathlib import Path

import pytest
import torch

from benchmarks import harness, score_length
from benchmarks.engines import NOVEL, read_tokens
from benchmarks.harness import ChildError, Measured
from benchmarks.score_length import GB, LIMIT_SECONDS, OURS, OURS_EXACT, Scored, bars, build, logprobs_of, run
from reformer_core import embedded_model_path, load_model


def scored(tokens: int, seconds: float, gigabytes: float = 1.0) -> Scored:
    return Scored(tokens, seconds, 1, int(gigabytes * GB))


def test_transformers_gives_the_scores_that_ours_gives() -> None:
    token_ids = read_tokens(NOVEL, 700)
    model = load_model(embedded_model_path(), device="cpu", dtype="float32")
    expected = logprobs_of(model(token_ids), token_ids)
    assert expected[0].isnan()
    torch.testing.assert_close(build(OURS_EXACT, 700)(token_ids), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    # In bfloat16 some tokens fall into another bucket, so on the average.
    assert (build(OURS, 700)(token_ids) - expected)[1:].abs().mean() < 0.05
    theirs = build("transformers, float32", 700)(token_ids)
    torch.testing.assert_close(theirs, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_full_attention_scores_with_the_same_vocabulary() -> None:
    token_ids = read_tokens(NOVEL, 50)
    found = build("full attention", 50)(token_ids)
    assert found.shape == (50,)
    assert found[1:].mean() == pytest.approx(-7, abs=1)  # log 1024, untrained


def test_scores_are_of_the_token_after_each() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]])
    found = logprobs_of(logits, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(found[1:], torch.stack([logits[0].log_softmax(-1)[1], logits[1].log_softmax(-1)[1]]))


def test_a_contender_stops_before_a_length_that_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def in_child(_: object, contender: str, tokens: int, **limits: float) -> Measured:
        asked.append(tokens)
        return Measured([tokens**2 * 1e-4, 1.0, 2 * tokens**2 * 1e-4], 10**9)

    monkeypatch.setattr(score_length, "in_child", in_child)
    stopped: dict[str, str] = {}
    found = list(run("full attention", (100, 1000, 10000), 10**10, stopped))
    assert asked == [100, 1000]
    assert [each.seconds for each in found] == [1.0, 100.0]
    assert "10,000 tokens would take some" in stopped["full attention"]
    assert LIMIT_SECONDS < 100 * 100


def test_a_contender_that_fails_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_child(*_: object, **__: object) -> Measured:
        raise ChildError("Traceback …\nRuntimeError: can't allocate memory")

    monkeypatch.setattr(score_length, "in_child", in_child)
    stopped: dict[str, str] = {}
    assert list(run("transformers, float32", (100, 200), 10**10, stopped)) == []
    assert stopped["transformers, float32"] == "100 tokens: RuntimeError: can't allocate memory"


def test_bars_take_the_peers_longest_text_and_faster_dtype() -> None:
    results = {
        OURS: [scored(262144, 10), scored(524288, 20, 1.5)],
        "transformers, float32": [scored(4096, 0.1), scored(262144, 40)],
        "transformers, bfloat16": [scored(4096, 9)],
        "full attention": [scored(4096, 1)],
    }
    speed, memory = bars(results)
    assert speed.what.endswith("at 262,144")
    assert speed.measured == pytest.approx(4)
    assert memory.measured == pytest.approx(1.5)
    assert speed.met
    assert memory.met
    assert bars({**results, OURS: [scored(4096, 1)]}) == []


def test_what_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "IMAGES", tmp_path)
    results = {OURS: [scored(1024, 0.1, 0.5), scored(4096, 0.4, 0.6)], "full attention": [scored(1024, 0.05, 0.4)]}
    score_length.show("picture", results, {"full attention": "4,096 tokens would take some 400 s"})
    told = capsys.readouterr().out
    assert "| 4,096 | 0.4 s, 0.60 GB | – |" in told
    assert "full attention: 4,096 tokens would take" in told
    assert (tmp_path / "picture.png").exists()
