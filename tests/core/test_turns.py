"""Whose turn it is, by the clock: decoding and reading get their shares, shorter readers more than longer ones."""

import random
from collections import Counter
from typing import Any

import pytest

from reformer_core.turns import MOST_READ_SECONDS, READ_SHARE, Balance, Rotation, Shares


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


class Reading:
    """As much of a request as matters here."""

    def __init__(self, tokens: int, owner: str = "somebody") -> None:
        self.tokens, self.owner = tokens, owner


def rotation_of(*readers: Any) -> Rotation:
    owners: Shares[Any] = Shares()
    rotation = Rotation(owners)
    for reader in readers:
        owners.join(reader.owner)
        rotation.add(reader)
    return rotation


def seconds_of_each(rotation: Rotation, turns: int) -> Counter[Any]:
    """Lets them read slices of very different lengths."""
    randomness, seconds = random.Random(0), Counter[Any]()
    for _ in range(turns):
        reader = next(iter(rotation))
        took = randomness.choice([0.001, 0.01, 0.1])
        rotation.took(reader, took)
        seconds[reader] += took
    return seconds


def test_equals_get_equal_time() -> None:
    seconds = seconds_of_each(rotation_of(*(Reading(1000) for _ in range(3))), 3000)
    assert max(seconds.values()) / min(seconds.values()) < 1.01


def test_shorter_ones_get_more() -> None:
    long, short, empty = Reading(2**20), Reading(2**12), Reading(0)
    seconds = seconds_of_each(rotation_of(long, short, empty), 20_000)
    assert seconds[short] / seconds[long] == pytest.approx(4, rel=0.02)
    assert seconds[empty] / seconds[long] == pytest.approx(32, rel=0.1)


def test_owners_get_equal_time_however_many_they_read_and_how_long() -> None:
    many, one = [Reading(100, "many") for _ in range(10)], Reading(2**20, "one")
    seconds = seconds_of_each(rotation_of(*many, one), 20_000)
    assert seconds[one] == pytest.approx(sum(seconds[each] for each in many), rel=0.02)


def test_who_comes_or_pauses_saves_nothing_up() -> None:
    """However long the others have read, newcomers get their share from now on, and so does who had to wait."""
    old, paused, new = Reading(100), Reading(100), Reading(100)
    rotation = rotation_of(old, paused)
    for _ in range(1000):
        rotation.took(old, 0.01)  # type: ignore[arg-type]
        rotation.passed(paused)  # type: ignore[arg-type]
    rotation.add(new)  # type: ignore[arg-type]
    seconds = seconds_of_each(rotation, 300)
    assert max(seconds.values()) / min(seconds.values()) < 1.2
    for reader in (old, paused):
        rotation.remove(reader)  # type: ignore[arg-type]
    assert list(rotation) == [new]
    assert old not in rotation
    rotation.took(old, 1.0)  # type: ignore[arg-type]
    rotation.passed(old)  # type: ignore[arg-type]
    assert list(rotation) == [new]


def test_an_owner_that_waits_for_its_readers_saves_nothing_up() -> None:
    busy, waits = Reading(100, "busy"), Reading(100, "waits")
    rotation = rotation_of(busy, waits)
    for _ in range(1000):
        rotation.took(busy, 0.01)  # type: ignore[arg-type]
        rotation.passed(waits)  # type: ignore[arg-type]
    seconds = seconds_of_each(rotation, 300)
    assert max(seconds.values()) / min(seconds.values()) < 1.2
