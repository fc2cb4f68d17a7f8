"""pytorch_model.bin from strangers: a pickle is a program, and no part of it may run."""

import io
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.checkpoints import reading_weights
from tests.fuzz.target import Judge, of_bytes


class Call:
    """Pickled, it is a call of a function, which would be made when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


MARK = "ran"
"""A folder of this name would be made in the current one."""


def pickle_seeds() -> list[bytes]:
    """Harmless ones and such that would make the folder, in all formats."""
    harmless = {"a": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.int8)}
    files = [pickle.dumps(harmless, protocol=protocol) for protocol in (0, 2, 4)]
    hostile = (
        Call(os.mkdir, MARK),
        Call(os.system, f"mkdir {MARK}"),
        Call(eval, f"__import__('os').mkdir('{MARK}')"),
        Call(exec, f"import os; os.mkdir('{MARK}')"),
        Call(getattr, "", "upper"),
    )
    for call in hostile:
        files += [pickle.dumps({"a": call}, protocol=protocol) for protocol in (0, 2, 4)]
    for content in (harmless, *({"a": call} for call in hostile)):
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            files.append(file.getvalue())
    return files


@contextmanager
def _never_running() -> Iterator[Judge[bytes]]:
    """The current folder is an empty one, and stays so."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, reading_weights("pytorch_model.bin") as judge:
        os.chdir(folder)

        def judge_and_look(content: bytes) -> None:
            judge(content)
            assert os.listdir() == [], "code of a pickle ran"

        try:
            yield judge_and_look
        finally:
            os.chdir(before)


PICKLES = of_bytes(
    "pickles",
    "pytorch_model.bin files with bytes changed, most of which would run code",
    20_000,
    pickle_seeds,
    _never_running,
)
