"""How many workers a Ray cluster has room for, and what each takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reformer_server.batch.corpus import CorpusError


@dataclass(frozen=True)
class Devices:
    """A worker a GPU, if there is one; else a worker for so many CPUs."""

    kind: str
    """"cuda" or "cpu"."""
    workers: int
    """In all."""
    workers_a_machine: int
    """At most."""
    cpus: int
    """Of each worker, which are its threads."""

    @property
    def of_worker(self) -> dict[str, int]:
        """What Ray has to set aside for each; it gives a worker as many threads as CPUs."""
        return {"num_cpus": self.cpus, "num_gpus": int(self.kind == "cuda")}

    @classmethod
    def of_cluster(cls, nodes: Sequence[Mapping[str, Any]], device: str, worker_cpus: int | None) -> "Devices":
        """Args:
            nodes: as `ray.nodes()` has them.
            device: "auto", "cpu" or "cuda".
            worker_cpus: of a worker without a GPU; None: all of the smallest machine.

        Raises:
            CorpusError: there is no such device.
        """
        machines = [node["Resources"] for node in nodes if node["Alive"]]
        cpus = [int(machine.get("CPU", 0)) for machine in machines]
        gpus = [int(machine.get("GPU", 0)) for machine in machines]
        if device not in ("auto", "cpu", "cuda"):
            raise CorpusError(f"device: must be auto, cpu or cuda, but is {device!r}; Ray chooses which of several")
        if device == "cuda" or (device == "auto" and any(gpus)):
            if not any(gpus):
                raise CorpusError("device: is 'cuda', but Ray knows of no GPU; see `ray status`")
            return cls("cuda", sum(gpus), max(gpus), cpus=1)
        each = worker_cpus or min(filter(None, cpus), default=1)
        workers = [count // each for count in cpus]
        if not any(workers):
            raise CorpusError(f"worker-cpus: is {each}, but the largest machine has {max(cpus, default=0)}; lower it")
        return cls("cpu", sum(workers), max(workers), each)
