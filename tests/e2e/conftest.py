"""A real server in a process of its own, on the real engine and a tiny random model of a million positions."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from benchmarks.serving import ServerProcess, serving
from reformer_client import Client
from reformer_core import ReformerConfig, ReformerModel, save_model
from reformer_core.tokenizers import ByteTokenizer


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


@pytest.fixture(scope="session")
def serve(model_directory: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers; those that a test leaves behind are stopped at the end."""
    with ExitStack() as servers:

        def start(*arguments: str | Path) -> ServerProcess:
            options = ("--model", model_directory, "--dtype", "float32", *arguments)
            # One thread: so small a model has nothing for a second one, which would only wait for a core of its own.
            return servers.enter_context(serving(*options, threads=1))

        yield start


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
