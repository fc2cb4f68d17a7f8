"""The benchmark of decoding against context, small: peers are compared on the same document, and tables say it."""

from pathlib import Path

import pytest
import torch

from benchmarks import decode_context, harness
from benchmarks.decode_context import FULL_ATTENTION, Comparison, bars, compare, measure_contexts, measure_merging
from benchmarks.harness import Timing
from benchmarks.peers import load_transformers, transformers_cache, transformers_step
from reformer_core import save_model
from tests.core.engines import text_model, tiny_engine
from tests.core.models import clear_tokens

TOKENS = 64


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds / 2, seconds * 2, 9)


def comparison(peer: str, context: int, theirs: float) -> Comparison:
    return Comparison(peer, context, timing(0.001), timing(theirs), None)


def test_ours_and_transformers_continue_the_same_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_context, "TOKENS", 4)
    model = text_model(num_hashes=1)
    save_model(model, tmp_path / "model")
    engine = tiny_engine(model)
    # In this text the next token's windows don't wrap around, which transformers would get wrong.
    ids = clear_tokens(model, 1, TOKENS + 1)[0]
    document = engine.prefill(ids[:TOKENS])
    cache = transformers_cache(model, ids[:TOKENS], torch.float32)
    step = transformers_step(load_transformers(tmp_path / "model", torch.float32), cache)
    found = compare(engine, document, "transformers, float32", step, [int(ids[TOKENS])] * decode_context.SPARE_TOKENS)
    assert found.context == TOKENS
    assert found.theirs.repeats == decode_context.PEER_TURNS * decode_context.PEER_TOKENS
    assert found.ours.repeats == decode_context.PEER_TURNS * 4
    assert cache.states_cache[0].shape[1] == TOKENS + decode_context.SPARE_TOKENS
    assert found.logit_difference is not None
    assert found.logit_difference < 1e-4
    document.close()


def test_all_contexts_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_context, "TOKENS", 3)
    monkeypatch.setattr(decode_context, "MERGING_TOKENS", 40)
    engine = tiny_engine(text_model())
    ids = clear_tokens(engine.model, 1, 200)[0]
    documents = {context: engine.prefill(ids[:context]) for context in (50, 100, 200)}
    ours = measure_contexts(engine, documents)
    assert list(ours) == [50, 100, 200]
    assert ours[50].repeats == 3 * decode_context.TURNS
    assert list(measure_merging(engine, documents)) == [50, 200]


def test_bars_take_the_peers_faster_dtype() -> None:
    ours = {4096: timing(0.003), 65536: timing(0.003), 520192: timing(0.0033)}
    comparisons = [
        comparison("transformers, float32", 65536, 0.05),
        comparison("transformers, bfloat16", 65536, 0.03),
        comparison("transformers, float32", 520192, 0.4),
        comparison(FULL_ATTENTION, 65536, 0.001),
    ]
    growth, at_64k, at_520k = bars(ours, comparisons)
    assert growth.met
    assert growth.measured == pytest.approx(1.1)
    assert at_64k.measured == pytest.approx(30)
    assert not at_64k.met
    assert at_520k.measured == pytest.approx(400)
    assert at_520k.met


def test_what_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "IMAGES", tmp_path)
    ours = {4096: timing(0.003), 16384: timing(0.0031)}
    comparisons = [comparison("transformers, float32", 4096, 0.016)]
    decode_context.show("picture", ours, {4096: 0.0034}, comparisons, bars(ours, comparisons))
    told = capsys.readouterr().out
    assert "| 4,096 | 3 (1.5–6) | 3.4 | 16, 16 × |" in told
    assert "| 16,384 | 3.1 (1.55–6.2) | – | – |" in told
    assert (tmp_path / "picture.png").exists()
