"""When a failed call is tried again, and how long to wait before."""

import asyncio
import math
import random
import time
from dataclasses import dataclass

from reformer_client.errors import ReformerError, ResourceExhaustedError, UnavailableError

_random = random.Random()  # its own, so that a seeded program draws the same numbers with and without retries


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, never shorter than what the server asks for.

    Only calls that have received nothing yet but reports of progress are tried again: always after UNAVAILABLE, after
    RESOURCE_EXHAUSTED if the server says when. Uploads go on from where they broke off.
    """

    max_attempts: int = 4
    """Tries in all, the first one included; 1 turns retries off. An upload that gets further starts counting anew."""
    initial_backoff_seconds: float = 0.2
    """Upper bound of the first wait."""
    max_backoff_seconds: float = 5.0
    """Upper bound of every wait, unless the server asks for more."""
    multiplier: float = 2.0
    """Growth of the upper bound from one wait to the next."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be 1 or more, but is {self.max_attempts}")
        if not 0 <= self.initial_backoff_seconds <= self.max_backoff_seconds < math.inf:
            raise ValueError(
                "the backoff must be finite, with 0 <= initial_backoff_seconds <= max_backoff_seconds, but they are "
                f"{self.initial_backoff_seconds} and {self.max_backoff_seconds}"
            )
        if not 1 <= self.multiplier < math.inf:
            raise ValueError(f"multiplier must be finite, 1 or more, but is {self.multiplier}")

    def allows(self, error: ReformerError) -> bool:
        """Whether a call that received nothing but this error may be tried again."""
        told_when = error.retry_after_seconds is not None
        return isinstance(error, UnavailableError) or (isinstance(error, ResourceExhaustedError) and told_when)

    def wait_seconds(self, failures: int, error: ReformerError) -> float:
        """How long to wait after the `failures`-th failure in a row."""
        bound = min(self.max_backoff_seconds, self.initial_backoff_seconds * self.multiplier ** (failures - 1))
        return max(error.retry_after_seconds or 0.0, 0.0) + _random.uniform(0, bound)


class Attempts:
    """Counts the tries of one call, within the policy and the call's deadline."""

    def __init__(self, policy: RetryPolicy, timeout_seconds: float | None) -> None:
        self._policy = policy
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._failures = 0

    @property
    def remaining_seconds(self) -> float | None:
        """What is left until the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def start_anew(self) -> None:
        """Forgets the failures so far: the call got further."""
        self._failures = 0

    async def wait(self, error: ReformerError) -> None:
        """Waits until the next try; raises `error` if there must be none."""
        self._failures += 1
        if not self._policy.allows(error) or self._failures >= self._policy.max_attempts:
            raise error from None
        wait_seconds = self._policy.wait_seconds(self._failures, error)
        if self.remaining_seconds is not None and wait_seconds >= self.remaining_seconds:
            raise error from None  # it says more than the DEADLINE_EXCEEDED that waiting would end in
        await asyncio.sleep(wait_seconds)
