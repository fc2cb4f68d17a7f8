"""Whose turn it is: how decoding and reading share the engine's time, and those that read among each other.

What is counted is time that was measured, since slices differ: it decides when something is computed, never what.
"""

import time
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch

READ_SHARE = 2.0  # seconds of reading for each second of decoding: a stream's gaps become three times as long
MOST_READ_SECONDS = 0.1  # between two decode steps, whatever the last one took
LENGTH_EXPONENT = 0.25  # of a reader's length in what a second counts for it

Reader = TypeVar("Reader")


class Stopwatch:
    """Tells how long the device worked."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._began = 0.0

    def start(self) -> None:
        """From now on."""
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Since `start`, until the device has done all that it was given."""
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - self._began


class Balance:
    """When to decode the next token while others read: a slice is read in between, or as many as their share holds."""

    def __init__(self) -> None:
        self._left_seconds = self._slice_seconds = 0.0

    @property
    def decoding_is_due(self) -> bool:
        """Whether another slice like the last one would exceed reading's share by more than what is missing now."""
        return self._left_seconds <= self._slice_seconds / 2

    def decoded(self, seconds: float) -> None:
        """A decode step took so long."""
        self._left_seconds = min(READ_SHARE * seconds, MOST_READ_SECONDS)

    def read(self, seconds: float) -> None:
        """A slice took so long."""
        self._left_seconds -= seconds
        self._slice_seconds = seconds


class Rotation(Generic[Reader]):
    """Those that read, in the order of their turns: fair queueing, in which shorter ones weigh more.

    Each has had some time, divided by its weight; the one that has had least comes next. Who joins begins where the one
    was that had the latest turn: so nobody has to make up for the time before.
    """

    def __init__(self) -> None:
        self._had: dict[Reader, float] = {}
        self._slowness: dict[Reader, float] = {}  # 1 / weight
        self._latest = 0.0

    def __iter__(self) -> Iterator[Reader]:
        return iter(sorted(self._had, key=self._had.__getitem__))

    def __contains__(self, reader: object) -> bool:
        return reader in self._had

    def add(self, reader: Reader, tokens: int) -> None:
        """Joins; of two, one that is 16 times as long gets half as much time, or one 256 times as long a quarter."""
        self._had[reader] = self._latest
        self._slowness[reader] = max(tokens, 1) ** LENGTH_EXPONENT

    def remove(self, reader: Reader) -> None:
        """Leaves."""
        del self._had[reader], self._slowness[reader]

    def took(self, reader: Reader, seconds: float) -> None:
        """It had its turn, and may have left since."""
        if reader in self._had:
            self._latest = self._had[reader]
            self._had[reader] += seconds * self._slowness[reader]

    def passed(self, reader: Reader) -> None:
        """It had no use for its turn; it can't save it up for later."""
        if reader in self._had:
            self._had[reader] = max(self._had[reader], self._latest)
