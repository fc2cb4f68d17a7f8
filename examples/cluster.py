"""Three servers that share a document store, and Envoy in front of them: deploy/envoy/envoy.yaml, on free ports.

What a data centre would run on four machines, in five processes of this one; `demo_cluster.py` and the tests use it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.envoy import Envoy, envoy_program, running_envoy, wait_until
from examples.replica import Replica

REPLICAS = 3


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

    Raises:
        FileNotFoundError: there is no Envoy.
        RuntimeError: a server or Envoy ended instead of serving.
    """
    envoy_program()  # before anything is started
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
