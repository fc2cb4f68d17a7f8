"""Whose turn it is: how decoding and reading share the engine's time, and those that read among each other.

What is counted is time that was measured, since slices differ: it decides when something is computed, never what.
"""

import time
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

import torch

from reformer_core.requests import Request

READ_SHARE = 2.0  # seconds of reading for each second of decoding: a stream's gaps become three times as long
MOST_READ_SECONDS = 0.1  # between two decode steps, whatever the last one took
LENGTH_EXPONENT = 0.25  # of a reader's length in what a second counts for it

Party = TypeVar("Party", bound=Hashable)


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


class Shares(Generic[Party]):
    """What parties have had of something that they are to get in equal parts: the one that has had least comes next.

    Who joins begins where the one was that had the latest turn: so nobody has to make up for the time before.
    """

    def __init__(self) -> None:
        self._had: dict[Party, float] = {}
        self._latest = 0.0

    def __contains__(self, party: object) -> bool:
        return party in self._had

    def had(self, party: Party) -> float:
        """So much; what one that would join now begins with, if it hasn't."""
        return self._had.get(party, self._latest)

    def join(self, party: Party) -> None:
        """Takes part from now on; nothing, if it does already."""
        self._had.setdefault(party, self._latest)

    def leave(self, party: Party) -> None:
        """Takes no part any more; idempotent."""
        self._had.pop(party, None)

    def took(self, party: Party, amount: float) -> None:
        """It had its turn, and may have left since."""
        if party in self._had:
            self._latest = self._had[party]
            self._had[party] += amount

    def passed(self, party: Party) -> None:
        """It had no use for its turn; it can't save it up for later."""
        if party in self._had:
            self._had[party] = max(self._had[party], self._latest)


class Rotation:
    """Requests that read, in the order of their turns: fair queueing among owners, and among those of each owner.

    Of one owner's requests, shorter ones weigh more: of two, one that is 16 times as long gets half as much time.
    """

    def __init__(self, owners: Shares[Hashable]) -> None:
        """`owners` is what owners have had of the engine's time, whatever for."""
        self._owners = owners
        self._readers: Shares[Request] = Shares()
        self._reading: dict[Request, None] = {}

    def __iter__(self) -> Iterator[Request]:
        return iter(
            sorted(self._reading, key=lambda request: (self._owners.had(request.owner), self._readers.had(request)))
        )

    def __contains__(self, request: object) -> bool:
        return request in self._reading

    def add(self, request: Request) -> None:
        """Joins."""
        self._reading[request] = None
        self._readers.join(request)

    def remove(self, request: Request) -> None:
        """Leaves."""
        del self._reading[request]
        self._readers.leave(request)

    def took(self, request: Request, seconds: float) -> None:
        """It had its turn, and may have left since."""
        self._readers.took(request, seconds * max(request.tokens, 1) ** LENGTH_EXPONENT)
        self._owners.took(request.owner, seconds)

    def passed(self, request: Request) -> None:
        """It had no use for its turn; it can't save it up for later."""
        self._readers.passed(request)
        self._owners.passed(request.owner)
