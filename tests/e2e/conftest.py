"""A real server in a process of its own, on the real engine and a tiny random model of a million positions."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from reformer_client import Client
from reformer_core import ReformerConfig, ReformerModel, save_model
from reformer_core.tokenizers import ByteTokenizer

START_SECONDS = 60


@dataclass
class ServerProcess:
    """`reformer serve`, started."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def metrics(self) -> dict[str, float]:
        """All series and their values now."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model over bytes, of a million positions."""
    config = ReformerConfig(
        attn_layers=("local", "lsh"),
        hidden_size=16,
        feed_forward_size=32,
        num_attention_heads=2,
        attention_head_size=8,
        vocab_size=ByteTokenizer.vocab_size,
        eos_token_id=None,
        local_attn_chunk_length=64,
        lsh_attn_chunk_length=64,
        num_hashes=2,
        num_buckets=(16, 16),
        axial_pos_shape=(1024, 1024),
        axial_pos_embds_dim=(8, 8),
        max_position_embeddings=1 << 20,
    )
    directory = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_model(ReformerModel(config).eval(), directory)
    return directory


def reformer(*arguments: str | Path) -> list[str]:
    """A command line of the installed program."""
    program = "from reformer_client.cli import main; main()"
    return [sys.executable, "-c", program, *map(str, arguments)]


@pytest.fixture(scope="session")
def serve(model_directory: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers; those that a test leaves behind are stopped at the end."""
    processes = []

    def start(*arguments: str | Path) -> ServerProcess:
        command = reformer(
            "serve",
            "--model",
            model_directory,
            "--port",
            "0",
            "--metrics-port",
            "0",
            "--dtype",
            "float32",
            "--json",
            *arguments,
        )
        # One thread: so small a model has nothing for a second one, which would only wait for a core of its own.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the server ended with exit code {process.wait()}"
        facts = json.loads(line)
        return ServerProcess(process, facts["port"], facts["metrics_port"])

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def server(serve: Callable[..., ServerProcess]) -> ServerProcess:
    """The server that most tests share."""
    return serve("--memory", "2GiB")


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address, timeout=100) as client:
        yield client
        until(lambda: client.load().running_requests == 0)


@pytest.fixture
def all_pages_come_back(client: Client) -> Iterator[None]:
    """After the test, nothing holds a page."""
    assert client.load().used_page_bytes == 0
    yield
    until(lambda: client.load().used_page_bytes == 0)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until `condition` holds; the test fails if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
