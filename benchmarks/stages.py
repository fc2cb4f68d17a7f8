"""How long each stage of a computation takes, measured from outside: timed functions replace its own meanwhile.

Times are a stage's own: what another stage that it calls takes is counted there.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from time import perf_counter
from typing import Any
from unittest.mock import patch

Place = tuple[object, str]
"""A function as its callers find it: a module, class or object, and its name there."""


class StageTimes:
    """Own seconds of each stage so far."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = [0.0]  # of each stage in progress: seconds in stages below it

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block belongs to this stage."""
        began = perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            seconds = perf_counter() - began
            self.seconds[name] += seconds - self._inner.pop()
            self._inner[-1] += seconds


@contextmanager
def timed_stages(functions: Mapping[str, Sequence[Place]]) -> Iterator[StageTimes]:
    """Times these functions, by stage, until the block ends. None of them may be a generator.

    Raises:
        AttributeError: there is no such function.
    """
    times = StageTimes()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with times.stage(name):
                return function(*args, **kwargs)

        return call

    with ExitStack() as patches:
        for name, places in functions.items():
            for owner, function in places:
                patches.enter_context(patch.object(owner, function, timed(name, getattr(owner, function))))
        yield times
