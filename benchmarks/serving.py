"""`reformer serve` in a process of its own, for benchmarks and tests that go through the SDK as users do."""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import peak_rss_bytes
from reformer_core import MemoryPlan, ReformerConfig, embedded_model_path, load_config
from reformer_core.placement import choose_device, choose_dtype

SESSIONS = 8  # requests at a time, of a server that a benchmark starts
SPARE_BYTES = 2**29  # for streams and short documents beside the long one
STOP_SECONDS = 30.0


@dataclass
class ServerProcess:
    """`reformer serve`, started."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int
    log_file: Path | None = None

    @property
    def log(self) -> str:
        """All that it has said so far, if that goes to a file."""
        assert self.log_file is not None, "it was started without log="
        return self.log_file.read_text(encoding="utf-8")

    @property
    def address(self) -> str:
        """For clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def peak_rss_bytes(self) -> int:
        """The most memory that the process ever held."""
        return peak_rss_bytes(self.process.pid)

    def metrics(self) -> dict[str, float]:
        """All series and their values now."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def metric(self, name: str, **labels: str) -> float:
        """The current value of one series; 0 if there is none, as of a status that no call has ended with yet."""
        inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        return self.metrics().get(f"{name}{{{inside}}}" if labels else name, 0.0)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=STOP_SECONDS)


def reformer(*arguments: object) -> list[str]:
    """A command line of the installed program."""
    program = "from reformer_client.cli import main; main()"
    return [sys.executable, "-c", program, *map(str, arguments)]


@contextmanager
def serving(
    *arguments: object, threads: int | None = None, program: Sequence[str] | None = None, log: Path | None = None
) -> Iterator[ServerProcess]:
    """Runs `reformer serve` with these arguments on free ports until the block ends.

    Args:
        arguments: further options and their values.
        threads: of torch; None: as many as it takes by itself.
        program: the command line in front of `serve`; None: the installed program.
        log: a file for what it says; None: this process's stderr.

    Raises:
        RuntimeError: it ended instead of serving.
    """
    ports, quiet = ("--port", 0, "--metrics-port", 0), ("--log-level", "warning")  # else each call is a line
    options = ("serve", *ports, "--store", "none", "--json", *quiet, *arguments)
    command = reformer(*options) if program is None else [*program, *map(str, options)]
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (
        nullcontext() if log is None else log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                code, said = process.wait(), "what it said is above" if log is None else log.read_text(encoding="utf-8")
                raise RuntimeError(f"the server ended with exit code {code}; {said.strip()}")
            facts = json.loads(line)
            yield ServerProcess(process, facts["port"], facts["metrics_port"], log)
        finally:
            process.kill()


def memory_bytes(config: ReformerConfig, dtype: torch.dtype, tokens: int, sessions: int = SESSIONS) -> int:
    """For `--memory` with `--max-running sessions`: a document of so many tokens, and some beside it."""
    plan = MemoryPlan(config, dtype, tokens, choose_device())
    return plan.fixed_bytes(sessions) + plan.page_bytes + SPARE_BYTES


@contextmanager
def serving_embedded(tokens: int, *arguments: object) -> Iterator[ServerProcess]:
    """The embedded text model, with memory for a document of so many tokens and a few requests beside it."""
    config, dtype = load_config(embedded_model_path()), choose_dtype("auto", choose_device())
    with serving("--memory", memory_bytes(config, dtype, tokens), "--max-running", SESSIONS, *arguments) as server:
        yield server


def length_options(
    name: str, description: str, arguments: Sequence[str] | None, *, tokens: int, quick_tokens: int
) -> tuple[str, int, bool]:
    """The command line of a benchmark whose effort is a length: its record's name, tokens, and whether it is quick."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--tokens", type=int, default=tokens, help=f"of the long document; default: {tokens:,}")
    parser.add_argument("--quick", action="store_true", help=f"{quick_tokens:,} tokens, to see that all of it runs")
    options = parser.parse_args(arguments)
    if options.quick:
        return f"{name}_quick", quick_tokens, True
    return name, options.tokens, False


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values doesn't exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
