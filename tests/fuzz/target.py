"""A target of the fuzzing: what it is fed with, and who judges each case; and a run of some cases."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.fuzz.mutations import mutated

T = TypeVar("T")
Judge = Callable[[T], None]

CASE_SECONDS = 10.0
"""A case that takes longer counts as a hang: hundreds of times what any takes, for other processes may be busy."""

BATCH = 5000  # cases; Hypothesis remembers all of a run


@dataclass(frozen=True)
class Target(Generic[T]):
    """One part of the system, and what strangers may feed it with."""

    name: str
    what: str
    """What is fed to what, for people to read."""
    cases: int
    """How many of them a whole campaign judges."""
    inputs: Callable[[], SearchStrategy[T]]
    """Made when they are wanted: some need a model's files."""
    judging: Callable[[], AbstractContextManager[Judge[T]]]
    """Sets up what is tested, and gives what judges a case: it raises if the case shows a fault. Now and then, and at
    the end, it also sees that nothing was left behind."""
    seeds: Callable[[], Sequence[bytes]] | None = None
    """Of a target of bytes: valid files, or messages, that the bytes are made from. The search for more of them can be
    guided by coverage."""


def of_bytes(
    name: str,
    what: str,
    cases: int,
    seeds: Callable[[], Sequence[bytes]],
    judging: Callable[[], AbstractContextManager[Judge[bytes]]],
) -> Target[bytes]:
    """A target whose cases are valid files with a few edits."""
    return Target(name, what, cases, lambda: mutated(seeds()), judging, seeds)


@dataclass
class Run:
    """What a run of a target has done so far."""

    cases: int = 0
    slowest_seconds: float = 0.0


def run(target: Target[Any], cases: int, first_seed: int, done: Run, watch: Judge[Any] = lambda case: None) -> None:
    """Judges so many cases; raises what was found, with the smallest case that shows it.

    `watch` is told every case before it is judged.
    """
    with target.judging() as judge:
        judge = timed(judge, done)
        inputs = target.inputs()
        for batch, start in enumerate(range(0, cases, BATCH)):

            @seed(first_seed + batch)
            @settings(
                max_examples=min(BATCH, cases - start),
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )
            @given(inputs)
            def examine(case: Any) -> None:
                watch(case)
                judge(case)

            examine()


def timed(judge: Judge[T], done: Run) -> Judge[T]:
    """The same judge, who counts and looks at the clock as well."""

    def judge_in_time(case: T) -> None:
        began = time.perf_counter()
        judge(case)
        seconds = time.perf_counter() - began
        done.cases += 1
        done.slowest_seconds = max(done.slowest_seconds, seconds)
        assert seconds <= CASE_SECONDS, f"it took {seconds:.1f} s"

    return judge_in_time
