"""A real grpc.aio server on a free port, on an engine that does no arithmetic, and stubs that speak to it."""

import asyncio
import logging
import socketserver
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import torch
import trustme

from reformer.v1 import document_pb2_grpc, inference_pb2_grpc, model_pb2_grpc
from reformer_core import ReformerConfig, ReformerModel
from reformer_core.tokenizers import ByteTokenizer, Tokenizer
from reformer_server import ServedModel, Server, Settings
from reformer_server.calls import Around
from reformer_server.logs import OUR_PACKAGES
from tests.server.fake_engine import FakeEngine

MAX_TOKENS = 4096


@dataclass
class Running:
    """A running server and its clients' stubs."""

    server: Server
    engine: Any
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.documents = document_pb2_grpc.DocumentServiceStub(self.channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.model = model_pb2_grpc.ModelServiceStub(self.channel)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition` holds; the test fails if it never does."""
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 -- what is looked at is another thread's
                await asyncio.sleep(0.005)

    async def until_idle(self) -> None:
        """Waits until no request and no page is in use."""

        def idle() -> bool:
            load = self.server.engine.load
            return (load.running, load.waiting, load.used_page_bytes) == (0, 0, 0)

        await self.until(idle)

    def metric(self, name: str, **labels: str) -> float:
        """The current value of one series."""
        value = self.server.metrics.registry.get_sample_value(f"reformer_{name}", labels)
        assert value is not None, f"there is no series {name} {labels}"
        return value


@pytest.fixture(autouse=True)
def metrics_port_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library's HTTP server looks only twice a second whether it shall end."""
    monkeypatch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.01,))


@pytest.fixture(autouse=True)
def log_levels_stay() -> Iterator[None]:
    """`serve` sets them, for the whole process."""
    loggers = [logging.getLogger(name) for name in (None, *OUR_PACKAGES)]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def tiny_served_model(tokenizer: Tokenizer) -> ServedModel:
    config = ReformerConfig(
        attn_layers=("local", "lsh"),
        hidden_size=16,
        feed_forward_size=16,
        num_attention_heads=2,
        attention_head_size=8,
        vocab_size=tokenizer.vocab_size,
        eos_token_id=None,
        local_attn_chunk_length=8,
        lsh_attn_chunk_length=8,
        num_buckets=4,
        axial_pos_shape=(64, 64),
        axial_pos_embds_dim=(8, 8),
        max_position_embeddings=MAX_TOKENS,
    )
    torch_state = torch.get_rng_state()
    model = ReformerModel(config).eval()
    torch.set_rng_state(torch_state)
    return ServedModel("tiny", model, tokenizer)


@pytest.fixture(scope="session")
def served_model() -> ServedModel:
    return tiny_served_model(ByteTokenizer())


@asynccontextmanager
async def running_server(
    model: ServedModel, engine: Any, links: Sequence[Around] = (), **settings: Any
) -> AsyncIterator[Running]:
    settings = {"store": "none", "port": 0, "metrics_port": 0, "drain_grace_seconds": 2.0, **settings}
    server = Server(Settings(**settings), model, lambda: engine, links=links)  # type: ignore[arg-type]
    try:
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Running(server, engine, channel)
    finally:
        await server.stop()


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(served_model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serve]:
    """Starts servers by their settings, on fake engines that take `step_seconds` a step; they read files often."""
    monkeypatch.setattr("reformer_server.access.POLL_SECONDS", 0.02)
    async with AsyncExitStack() as stack:

        async def start(*, step_seconds: float = 0.0, **settings: Any) -> Running:
            engine = FakeEngine(step_seconds=step_seconds)
            return await stack.enter_async_context(running_server(served_model, engine, **settings))

        yield start


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def stranger() -> trustme.CA:
    """An authority that nobody trusts, unless a test says so."""
    return trustme.CA()


@pytest.fixture
async def running(served_model: ServedModel) -> AsyncIterator[Running]:
    async with running_server(served_model, FakeEngine()) as running:
        yield running
