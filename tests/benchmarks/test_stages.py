"""Stages have their own times, all stages together the whole time, and every function that is timed exists."""

import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import where_time_goes, work
from benchmarks.stages import timed_stages
from benchmarks.where_time_goes import REST, Stage, decoding_stages, measure_decoding, measure_reading, reading_stages
from reformer_core import Engine
from tests.core.engines import text_model, tiny_engine
from tests.core.models import small_config
from tests.core.tiny import random_tokens

RATE = 1e9


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(text_model(num_hashes=2))


def test_a_stage_is_charged_its_own_time_only() -> None:
    program = SimpleNamespace(inner=lambda: time.sleep(0.05))
    program.outer = lambda: (time.sleep(0.02), program.inner(), program.inner())
    original = program.inner
    with timed_stages({"outer": [(program, "outer")], "inner": [(program, "inner")]}) as times:
        program.outer()
    assert times.seconds["inner"] >= 0.1
    assert 0.02 <= times.seconds["outer"] < 0.05
    assert program.inner is original


def test_a_function_that_fails_is_timed_as_well() -> None:
    program = SimpleNamespace(fail=lambda: 1 / 0)
    with timed_stages({"fail": [(program, "fail")]}) as times, pytest.raises(ZeroDivisionError):
        program.fail()
    assert times.seconds["fail"] > 0
    with pytest.raises(AttributeError, match="missing"), timed_stages({"": [(program, "missing")]}):
        pass


def test_every_stage_takes_part_in_reading(engine: Engine) -> None:
    reading = measure_reading(engine, random_tokens(engine.model, 200), lambda: RATE)
    assert reading.rate == RATE
    assert {stage.name for stage in reading.stages} == set(reading_stages(engine.model))
    assert reading.stages[-1].name == REST
    limited = {stage.name for stage in reading.stages if stage.limit_milliseconds is not None}
    assert limited == set(work.multiplications(engine.model.config))
    reading.document.close()


def test_every_stage_takes_part_in_decoding(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where_time_goes, "DECODED_TOKENS", 5)
    document = engine.prefill(random_tokens(engine.model, 200))
    seconds, stages = measure_decoding(engine, document, RATE)
    assert seconds > 0
    assert {stage.name for stage in stages} == set(decoding_stages(engine.model))
    limited = {stage.name for stage in stages if stage.limit_milliseconds is not None}
    assert limited == set(work.decode_reads(engine.model.config, 4))
    document.close()


def test_what_is_shown() -> None:
    table = where_time_goes.stage_table([Stage("attend", 30.0, 15.0), Stage("sort", 10.0, None)])
    assert "| attend | 30 | 75% | 15 | 50% |" in table
    assert "| sort | 10 | 25% | – | – |" in table
    assert "| together | 40 | 100% | 15 | 38% |" in table


def test_weights_are_read_once_a_token() -> None:
    config = small_config()
    model = text_model(vocab_size=config.vocab_size)
    weights = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "embeddings" not in name and parameter.dim() > 1
    )
    # Their opposites needn't be read.
    rotations = sum(buffer.numel() // 2 for name, buffer in model.named_buffers() if name.endswith("rotations"))
    reads = work.decode_reads(model.config, 4)
    assert sum(reads.values()) - reads["attend"] == 4 * (weights + rotations)
    multiplied = work.multiplications(model.config)
    attended = multiplied["attend, LSH"] + multiplied["attend, local"]
    assert sum(multiplied.values()) - attended == 2 * (weights + rotations)


def test_rates_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "MATRIX_SIZE", 256)
    monkeypatch.setattr(work, "COPIED_BYTES", 1 << 22)
    assert 1e8 < work.multiplication_rate(torch.float32) < 1e15
    assert 1e7 < work.memory_rate() < 1e13
