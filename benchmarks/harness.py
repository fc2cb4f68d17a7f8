"""What all benchmarks share: the machine's record, measurements in child processes, timings, results, plots, tables.

A benchmark is a module that is run from the project's folder: `python -m benchmarks.NAME`. It leaves
`benchmarks/results/NAME.json`, perhaps `docs/images/NAME.png`, and prints tables for `docs/benchmarks.md`.
"""

import ctypes
import json
import multiprocessing
import os
import platform
import re
import resource
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reformer_core.placement import cpu_multiplies_bfloat16

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"


@dataclass(frozen=True)
class Measured:
    """What a child process did."""

    value: Any
    """What the function returned."""
    peak_rss_bytes: int
    """The most memory that the process ever held, interpreter and libraries included."""


class ChildError(Exception):
    """A child process gave no result; the message says why: out of memory, too slow, or its traceback."""


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    median_seconds: float
    min_seconds: float
    max_seconds: float
    repeats: int


def environment() -> dict[str, Any]:
    """The machine and the versions, as they belong beside every figure."""
    packages = ("reformer-serve", "torch", "transformers", "numpy")
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),  # those that this process may use
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "native_bfloat16": cpu_multiplies_bfloat16(),
        "gpu": torch.cuda.get_device_name() if on_gpu() else None,
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def in_child(
    function: Callable[..., Any],
    *args: Any,
    limit_bytes: int | None = None,
    timeout_seconds: float | None = None,
) -> Measured:
    """Runs a function in a new process, so that its memory is its own.

    Args:
        function: of a module, not a lambda; it and its arguments are pickled.
        limit_bytes: of data the process may allocate; beyond it, allocations fail.
        timeout_seconds: after that the process is killed.

    Raises:
        ChildError: there is no result.
    """
    context = multiprocessing.get_context("spawn")  # a forked child would begin with the parent's memory
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, limit_bytes, function, args))
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout_seconds):
            raise ChildError(f"no result after {timeout_seconds:g} s")
        result = receiver.recv()
    except EOFError:
        process.join()
        raise ChildError(f"the process ended with exit code {process.exitcode}: out of memory?") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(result, str):
        raise ChildError(result)
    assert isinstance(result, Measured)
    return result


def peak_rss_bytes(process: int | None = None) -> int:
    """The most memory that a process (None: this one) ever held, or since its `reset_peak_rss`."""
    status = Path(f"/proc/{process or 'self'}/status").read_text()  # getrusage's figure begins with the parent's
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert match, status
    return 1024 * int(match[1])


def reset_peak_rss() -> None:
    """Lets `peak_rss_bytes` begin again with what the process holds now, after giving back what it has freed."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def time_interleaved(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int = 5, warm_ups: int = 1
) -> dict[str, Timing]:
    """Times functions in turns, so that what else the machine does hits all of them alike."""

    def timed(run: Callable[[], object]) -> Callable[[], list[float]]:
        def seconds() -> list[float]:
            began = time.perf_counter()
            run()
            return [time.perf_counter() - began]

        return seconds

    return in_turns({name: timed(run) for name, run in contenders.items()}, repeats=repeats, warm_ups=warm_ups)


def in_turns(
    contenders: Mapping[str, Callable[[], list[float]]], *, repeats: int = 5, warm_ups: int = 1
) -> dict[str, Timing]:
    """The same for functions that time themselves, perhaps several things a call, and return all the seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warm_ups, repeats):
        for name, measure in contenders.items():
            measured = measure()
            if turn >= 0:
                seconds[name] += measured
    return {name: Timing(statistics.median(all_), min(all_), max(all_), len(all_)) for name, all_ in seconds.items()}


def on_gpu() -> bool:
    """Whether what is measured runs on a GPU: its results and plots lie beside those of a CPU, not in their place."""
    return torch.cuda.is_available()


def save(name: str, results: Mapping[str, Any]) -> Path:
    """Writes benchmarks/results/NAME.json, on a GPU results/gpu/NAME.json: results, command, and machine."""
    command = shlex.join(["python", *sys.orig_argv[1:]])
    record = {"command": command, "environment": environment(), **results}
    path = (RESULTS / "gpu" if on_gpu() else RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2, default=_plain) + "\n", encoding="utf-8")
    return path


@contextmanager
def plot(name: str, panels: int = 1) -> Iterator["Sequence[Axes]"]:
    """Panels side by side to draw on; what is drawn becomes docs/images/NAME.png, or gpu_NAME.png."""
    from matplotlib.figure import Figure  # here: a child process that measures its memory shouldn't hold it

    figure = Figure(figsize=(5.5 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    yield list(axes)
    for each in axes:
        each.grid(alpha=0.3)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / (f"gpu_{name}.png" if on_gpu() else f"{name}.png"), dpi=110)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as the documentation has it; floats are given to three digits."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), ["---"] * len(header), *cells])


def _child(sender: Connection, limit_bytes: int | None, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    try:
        value = function(*args)
    except Exception:  # noqa: BLE001  # whatever it is, the parent tells it
        sender.send(traceback.format_exc())
    else:
        sender.send(Measured(value, peak_rss_bytes()))


def _cpu_model() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.processor()


def _plain(value: Any) -> Any:
    if isinstance(value, Timing | Measured):
        return asdict(value)
    raise TypeError(f"a result must be made of plain values, but has a {type(value).__name__}")
