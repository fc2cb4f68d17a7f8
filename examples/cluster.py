"""Three servers that share a document store, and Envoy in front of them: deploy/envoy/envoy.yaml, on free ports.

What a data centre would run on four machines, in five processes of this one; `demo_cluster.py` and the tests use it.
"""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import ServerProcess, serving
from examples.envoy import Envoy, running_envoy, wait_until

REPLICAS = 3


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
        port = self.server.port if self._starts else 0
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


@dataclass(frozen=True)
class Cluster:
    """All of it."""

    replicas: list[Replica]
    envoy: Envoy

    @property
    def address(self) -> str:
        """For clients: Envoy's."""
        return self.envoy.address

    def __getitem__(self, name: str | None) -> Replica:
        """A replica by its name."""
        return next(replica for replica in self.replicas if replica.name == name)

    def wait_until_healthy(self, names: set[str] | None = None) -> None:
        """Returns when Envoy sends calls to these replicas, and to no other; None: all."""
        wanted = {replica.name for replica in self.replicas} if names is None else names
        wait_until(lambda: self.envoy.healthy() == wanted, f"Envoy doesn't see {', '.join(sorted(wanted))} as healthy")

    def holders(self) -> dict[str, str]:
        """By document: the replica that answered its latest call."""
        return {
            call.document: call.replica
            for call in self.envoy.calls()
            if call.document is not None and call.replica is not None and call.status == "OK"
        }


@contextmanager
def running(folder: Path, *options: object, replicas: int = REPLICAS) -> Iterator[Cluster]:
    """The cluster, until the block ends: then all its processes have ended as well.

    Args:
        folder: for the store, logs and Envoy's configuration.
        options: of each server, and their values.
        replicas: how many servers, at most three.
    """
    with ExitStack() as stack:
        options = ("--store", folder / "store", *options)
        servers = [Replica(f"replica-{number}", folder, options) for number in range(replicas)]
        for server in servers:
            stack.callback(server.close)
        with ThreadPoolExecutor(replicas) as pool:
            list(pool.map(Replica.start, servers))
        ports = {server.server.port: server.name for server in servers}
        cluster = Cluster(servers, stack.enter_context(running_envoy(folder, ports)))
        cluster.wait_until_healthy()
        yield cluster
