"""One of the servers that `cluster.py` starts: a process that is stopped, killed and started again."""

import random
import signal
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.serving import ServerProcess, serving


class Replica:
    """One server of the cluster. It always comes back on its port."""

    def __init__(self, name: str, folder: Path, options: Sequence[object]) -> None:
        self.name = name
        self._folder, self._options = folder, options
        self._starts = 0
        self._running: AbstractContextManager[ServerProcess] | None = None
        self.server: ServerProcess

    @property
    def log(self) -> str:
        """What it has said, over all its starts."""
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self._folder.glob(f"{self.name}.*.log")))

    def start(self) -> None:
        """Returns when it serves."""
        port = self.server.port if self._starts else free_port()
        self.close()
        log = self._folder / f"{self.name}.{self._starts}.log"
        running = serving("--port", port, *self._options, threads=1, log=log)
        self.server = running.__enter__()
        self._running = running
        self._starts += 1

    def stop(self) -> int:
        """SIGTERM: it finishes what runs, and what is to be stored. Returns its exit code."""
        return self.server.stop()

    def kill(self) -> None:
        """SIGKILL: it finishes nothing."""
        self.server.stop(signal.SIGKILL)

    def close(self) -> None:
        """It is gone after this; idempotent."""
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None


def free_port() -> int:
    """One that stays free while its replica is down: it is below those that systems give to connections."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("a hundred ports between 20000 and 32000 are all taken")
