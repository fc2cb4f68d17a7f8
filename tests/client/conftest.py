"""A fake server, and clients of it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from reformer_client import AsyncClient, Client, RetryPolicy
from tests.client.fake_server import FakeServer

QUICK = RetryPolicy(initial_backoff_seconds=0.01, max_backoff_seconds=0.02)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address, retry=QUICK, timeout=20) as client:
        yield client


@pytest.fixture
async def async_client(server: FakeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.address, retry=QUICK, timeout=20) as client:
        yield client
