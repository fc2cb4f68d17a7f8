"""The command `reformer serve`: how it ends."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.serving import ServerProcess, reformer
from reformer_client import Client, UnavailableError


def test_clean_stop(serve: Callable[..., ServerProcess]) -> None:
    """A stream that runs when SIGTERM comes is finished first; then the exit code is 0."""
    server = serve()
    with Client(server.address) as client:
        stream = client.generate("x", max_tokens=100)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        assert sum(1 for _ in stream) == 99
    assert server.process.wait(timeout=30) == 0


def test_end_of_the_grace_period(serve: Callable[..., ServerProcess]) -> None:
    """A stream that takes longer is told to try again elsewhere; the exit code is 0 all the same."""
    server = serve("--drain-grace", "100ms")
    with Client(server.address) as client:
        stream = client.generate("x", max_tokens=10**5)
        next(stream)
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(UnavailableError) as caught:
            list(stream)
        assert caught.value.reason == "DRAINING"
        assert caught.value.retry_after_seconds
    assert server.process.wait(timeout=30) == 0


def test_reload_while_the_model_is_loaded(tmp_path: Path) -> None:
    """It would end the process, and systemd takes that for a clean end, after which nothing is started anew."""
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "settings.toml").write_text(f"model = '{tmp_path}'\nport = 0\nmetrics-port = 0\n")
    command = reformer("serve", "--config", tmp_path / "settings.toml")
    with subprocess.Popen(command) as process, (tmp_path / "config.json").open("w"):
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_stop_while_the_model_is_loaded(tmp_path: Path) -> None:
    """Not to be waited for, however long that takes: here it never ends."""
    os.mkfifo(tmp_path / "config.json")
    command = reformer("serve", "--model", tmp_path, "--port", 0, "--metrics-port", 0)
    with subprocess.Popen(command) as process, (tmp_path / "config.json").open("w"):  # which waits for its reader
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
