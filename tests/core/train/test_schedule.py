"""Phases, counted exactly, and the learning rate over them."""

from itertools import pairwise

import pytest

from reformer_core.train.schedule import Progress, learning_rate_share
from reformer_core.train.settings import OptimizerSettings
from tests.core.train.small import settings


def test_tokens_are_counted_exactly() -> None:
    progress = Progress(settings({"tokens": 250}, {"tokens": 750}).schedule)
    assert [progress.examples(length) for length in (20, 32, 100)] == [3, 2, 1]
    for _ in range(3):
        progress.advance(tokens=80, seconds=1.0)
    assert (progress.phase_index, progress.done, progress.examples(5)) == (0, 0.24, 2)
    progress.advance(tokens=10, seconds=1.0)
    assert (progress.phase_index, progress.done, progress.finished) == (1, 0.25, False)
    assert progress.done_amid(100) == pytest.approx(0.3)
    progress.advance(tokens=750, seconds=1.0)
    assert (progress.finished, progress.done) == (True, 1)


def test_steps_are_counted_exactly() -> None:
    progress = Progress(settings({"steps": 1}, {"steps": 3}).schedule)
    assert progress.done_amid(64) == 0.125
    found = []
    while not progress.finished:
        found.append(progress.phase_index)
        progress.advance(tokens=64, seconds=1.0)
    assert found == [0, 1, 1, 1]


def test_minutes_follow_the_clock() -> None:
    progress = Progress(settings({"minutes": 1}, {"minutes": 1.5}).schedule)
    progress.advance(tokens=64, seconds=45.0)
    assert (progress.phase_index, progress.done) == (0, 0.3)
    progress.advance(tokens=64, seconds=20.0)
    assert progress.phase_index == 1


def test_goes_on_from_where_it_was() -> None:
    phases = settings({"tokens": 250}, {"tokens": 750}).schedule
    progress, other = Progress(phases), Progress(phases)
    for _ in range(5):
        progress.advance(tokens=80, seconds=1.0)
    other.load_state_dict(progress.state_dict())
    assert (other.phase_index, other.done) == (progress.phase_index, progress.done)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_the_learning_rate_rises_stays_and_falls(shape: str) -> None:
    chosen = OptimizerSettings.model_validate({"warmup": 0.1, "decay": 0.4, "decay_shape": shape})
    shares = [learning_rate_share(done / 100, chosen) for done in range(101)]
    assert shares[:11] == pytest.approx([done / 10 for done in range(11)])
    assert set(shares[10:61]) == {1.0}
    assert all(one > other for one, other in pairwise(shares[60:]))
    assert shares[80] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0)


def test_without_warmup_or_decay_it_is_constant() -> None:
    chosen = OptimizerSettings(warmup=0.0, decay=0.0)
    assert {learning_rate_share(done, chosen) for done in (0.0, 0.5, 0.99)} == {1.0}
