"""The targets of bytes once more, guided by coverage: Atheris, where it can be installed, in a process of its own."""

import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.fuzz.target import CASE_SECONDS, Run, Target, timed

INSTRUMENTED = ["PIL", "reformer_core", "reformer_server", "tomllib", "json"]
"""Packages whose coverage is looked at."""


def installed() -> bool:
    """Whether there is an Atheris for this Python and this machine."""
    return find_spec("atheris") is not None


def import_instrumented() -> None:
    """To be called before anything of these packages is imported."""
    import atheris  # type: ignore[import-untyped]
    import torch  # noqa: F401 -- before it, for it imports parts of these packages

    with atheris.instrument_imports(include=INSTRUMENTED):
        for module in ("PIL.PngImagePlugin", "PIL.JpegImagePlugin", "tests.fuzz.targets"):
            import_module(module)


def run_guided(target: Target[Any], cases: int, seed: int, done: Run, end: Callable[[str | None], None]) -> None:
    """Judges so many cases. It doesn't return: the process ends, after `end` was told what was found, if anything."""
    import atheris

    stack = ExitStack()
    judge = timed(stack.enter_context(target.judging()), done)
    assert target.seeds is not None, f"{target.name} has no seeds to begin with"

    def examine(case: bytes) -> None:
        found = None
        try:
            judge(case)
            if done.cases == cases:
                stack.close()
        except Exception:  # noqa: BLE001 -- whatever it is, it was found
            found = f"{traceback.format_exc()}\ncase: {case!r}"
        if found or done.cases == cases:
            end(found)
            os._exit(0)

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    for number, content in enumerate(target.seeds()):
        (folder / f"{number:03}").write_bytes(content)
    limits = [f"-timeout={int(CASE_SECONDS)}", "-rss_limit_mb=6000", "-max_len=65536", f"-artifact_prefix={folder}-"]
    atheris.Setup(["fuzz", f"-seed={seed}", f"-runs={10 * cases}", "-verbosity=0", *limits, str(folder)], examine)
    atheris.Fuzz()
