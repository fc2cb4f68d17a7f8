"""Whose turn it is, by the clock: decoding and reading get their shares, shorter readers more than longer ones."""

import random
from collections import Counter

import pytest

from reformer_core.turns import MOST_READ_SECONDS, READ_SHARE, Balance, Rotation


@pytest.mark.parametrize(("slice_seconds", "slices"), [(0.0001, 200), (0.001, 20), (0.007, 3), (0.015, 1), (0.5, 1)])
def test_reading_gets_its_share_to_the_nearest_slice(slice_seconds: float, slices: int) -> None:
    balance = Balance()
    counts = []
    for _ in range(5):
        balance.decoded(0.02 / READ_SHARE)
        balance.read(slice_seconds)
        count = 1
        while not balance.decoding_is_due:
            balance.read(slice_seconds)
            count += 1
        counts.append(count)
    assert counts == [slices] * 5


def test_a_slow_step_is_no_reason_for_a_long_wait() -> None:
    balance = Balance()
    balance.decoded(10.0)
    waited = 0.0
    while not balance.decoding_is_due:
        balance.read(0.01)
        waited += 0.01
    assert waited == pytest.approx(MOST_READ_SECONDS, abs=0.01)


def seconds_of_each(rotation: Rotation[str], turns: int) -> Counter[str]:
    """Lets them read slices of very different lengths."""
    randomness, seconds = random.Random(0), Counter[str]()
    for _ in range(turns):
        reader = next(iter(rotation))
        took = randomness.choice([0.001, 0.01, 0.1])
        rotation.took(reader, took)
        seconds[reader] += took
    return seconds


def test_equals_get_equal_time() -> None:
    rotation = Rotation[str]()
    for name in "abc":
        rotation.add(name, 1000)
    seconds = seconds_of_each(rotation, 3000)
    assert max(seconds.values()) / min(seconds.values()) < 1.01


def test_shorter_ones_get_more() -> None:
    rotation = Rotation[str]()
    rotation.add("long", 2**20)
    rotation.add("short", 2**12)
    rotation.add("empty", 0)
    seconds = seconds_of_each(rotation, 20_000)
    assert seconds["short"] / seconds["long"] == pytest.approx(4, rel=0.02)
    assert seconds["empty"] / seconds["long"] == pytest.approx(32, rel=0.1)


def test_who_comes_or_pauses_saves_nothing_up() -> None:
    """However long the others have read, newcomers get their share from now on, and so does who had to wait."""
    rotation = Rotation[str]()
    rotation.add("old", 100)
    rotation.add("paused", 100)
    for _ in range(1000):
        rotation.took("old", 0.01)
        rotation.passed("paused")
    rotation.add("new", 100)
    seconds = seconds_of_each(rotation, 300)
    assert max(seconds.values()) / min(seconds.values()) < 1.2
    for name in ("old", "paused"):
        rotation.remove(name)
    assert list(rotation) == ["new"]
    assert "old" not in rotation
    rotation.took("old", 1.0)
    rotation.passed("old")
    assert list(rotation) == ["new"]
