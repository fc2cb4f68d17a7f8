"""A clock that tests move."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Seconds since whenever."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now
