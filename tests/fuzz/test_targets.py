"""Some cases of every target, to see that all of them work; `make fuzz` runs the campaign."""

import warnings
from typing import Any

import pytest

from tests.fuzz.target import Run, Target, run
from tests.fuzz.targets import TARGETS

CASES = 40
SEED = 7


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_some_cases(target: Target[Any]) -> None:
    done = Run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of readers, about damaged files
        run(target, CASES, SEED, done)
    assert done.cases >= CASES


def test_names_are_unique() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
