"""What is timed is what is said: whole steps of so many tokens, by as many streams as are told."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from benchmarks import engines, harness
from benchmarks.bars import Bar, bar_table
from benchmarks.engines import embedded_engine, streams_seconds, token_seconds
from benchmarks.harness import in_turns
from reformer_core import Engine, embedded_model_path, load_model
from reformer_core.decoding import Decoding
from reformer_core.session_requests import GenerateRequest
from tests.core.engines import check_idle, text_model, tiny_engine
from tests.core.tiny import random_tokens


@pytest.fixture
def engine() -> Engine:
    return tiny_engine(text_model())


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all decode steps; and their number is the time."""
    sizes: list[int] = []

    def counted(self: Decoding, batch: Sequence[GenerateRequest]) -> None:
        sizes.extend([len(batch)] if batch else [])
        append(self, batch)

    append = Decoding.append
    monkeypatch.setattr(Decoding, "append", counted)
    monkeypatch.setattr(engines, "time", SimpleNamespace(perf_counter=lambda: float(len(sizes))))
    return sizes


def test_a_streams_tokens_are_timed_one_by_one(engine: Engine, batches: list[int]) -> None:
    document = engine.prefill(random_tokens(engine.model, 100))
    assert token_seconds(engine, document, 20) == [1.0] * 20
    assert batches == [1] * 21  # the first one isn't counted
    check_idle(engine, [document])


def test_streams_are_timed_while_all_of_them_run(engine: Engine, batches: list[int]) -> None:
    documents = [engine.prefill(random_tokens(engine.model, 64, seed)) for seed in range(3)]
    assert streams_seconds(engine, documents, 10) == 10.0
    assert batches[-10:] == [3] * 10
    check_idle(engine, documents)


def test_the_embedded_models_generations_dont_end_early() -> None:
    engine = embedded_engine(max_running=1)
    assert load_model(embedded_model_path()).config.eos_token_id is not None
    assert engine.model.config.eos_token_id is None
    document = engine.prefill(engines.read_tokens(engines.NOVEL, 64))
    assert len(token_seconds(engine, document, 3)) == 3


def test_functions_that_time_themselves_take_turns() -> None:
    turns: list[str] = []

    def measure(name: str, seconds: list[float]) -> list[float]:
        turns.append(name)
        return seconds

    contenders = {"a": lambda: measure("a", [1.0, 3.0]), "b": lambda: measure("b", [5.0])}
    timings = in_turns(contenders, repeats=2)
    assert turns == ["a", "b"] * 3
    assert timings["a"] == harness.Timing(2.0, 1.0, 3.0, 4)
    assert timings["b"].repeats == 2


def test_bars_are_met_or_not() -> None:
    found = [Bar("speed", 6.0, least=6), Bar("growth", 1.2, most=1.15), Bar("missing", None, least=1)]
    assert [bar.met for bar in found] == [True, False, False]
    table = bar_table(found)
    assert "| speed | ≥ 6 | 6 | met |" in table
    assert "| growth | ≤ 1.15 | 1.2 | not met |" in table
    assert "| missing | ≥ 1 | not measured | not met |" in table
