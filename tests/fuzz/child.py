"""One target in a process of its own, so that what kills it is found as well."""

import faulthandler
import json
import logging
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import guided
from tests.fuzz.target import CASE_SECONDS, Run, Target, run

TARGET_SECONDS = 3600.0
MOST_TOLD = 6000
"""Characters of a finding."""


def judged_in_child(target: Target[Any], cases: int, seed: int) -> dict[str, Any]:
    """What came of so many cases of a target: how they were searched, how many there were, the slowest, and `found`."""
    by_coverage = target.seeds is not None and guided.installed()
    # Only a fresh process can import what is to be instrumented; the others begin with what this one has imported.
    context: Any = multiprocessing.get_context("spawn" if by_coverage else "fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = context.Process(target=_judge, args=(target.name, cases, seed, folder, by_coverage))
        began = time.monotonic()
        process.start()
        process.join(TARGET_SECONDS)
        process.kill()
        process.join()
        seconds = time.monotonic() - began
        if (folder / "record").exists():
            result = json.loads((folder / "record").read_text())
        else:
            case, log = ((folder / file).read_text() if (folder / file).exists() else "?" for file in ("case", "log"))
            told = f"the process ended with exit code {process.exitcode}\n{log[-MOST_TOLD:]}\ncase: {case[:MOST_TOLD]}"
            result = {"search": "", "cases": 0, "slowest_seconds": 0.0, "found": [told]}
        return {"target": target.name, "what": target.what, **result, "seconds": seconds}


def _judge(name: str, cases: int, seed: int, folder: Path, by_coverage: bool) -> None:
    with (folder / "log").open("w") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    warnings.simplefilter("ignore")  # of readers, about damaged files
    logging.disable()  # what is found is raised
    if by_coverage:
        guided.import_instrumented()
    from tests.fuzz.targets import TARGETS

    [target] = [target for target in TARGETS if target.name == name]
    done = Run()

    def end(found: str | None) -> None:
        told = [] if found is None else [found[-MOST_TOLD:]]
        result = {"search": "atheris" if by_coverage else "hypothesis", **vars(done), "found": told}
        (folder / "record").write_text(json.dumps(result))

    if by_coverage:
        guided.run_guided(target, cases, seed, done, end)
    try:
        run(target, cases, seed, done, _watching(folder / "case"))
    except Exception:  # noqa: BLE001 -- whatever it is, it was found
        end(traceback.format_exc())
    else:
        end(None)


def _watching(file: Path) -> Callable[[object], None]:
    """Notes the case that is judged now, and ends the process if it doesn't come to an end."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    faulthandler.register(signal.SIGALRM, chain=True)  # says where, and then does what the signal does: it kills

    def watch(case: object) -> None:
        said = repr(case).encode()
        os.pwrite(descriptor, said, 0)
        os.ftruncate(descriptor, len(said))
        signal.setitimer(signal.ITIMER_REAL, 2 * CASE_SECONDS)

    return watch
