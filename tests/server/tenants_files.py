"""A tenants' file for tests, and clients of the server that reads it."""

import asyncio
from pathlib import Path

from reformer_client import AsyncClient, ReformerError, RetryPolicy
from reformer_server.credentials import token_hash
from tests.server.conftest import Running

ONCE = RetryPolicy(max_attempts=1)


def token_of(name: str) -> str:
    return f"token-of-{name}"


def table(name: str, *entries: str, tokens: int = 1) -> str:
    """A tenant in the file, with one token or several: that of its name, of its name and 1, and so on."""
    hashes = [token_hash(token_of(name + (str(i) if i else ""))) for i in range(tokens)]
    return "\n".join((f"[tenants.{name}]", f"tokens = {hashes}", *entries, ""))


def write(file: Path, *tables: str) -> Path:
    file.write_text("\n".join(tables))
    return file


def client(running: Running, name: str, retry: RetryPolicy = ONCE) -> AsyncClient:
    """A client with this tenant's token."""
    return AsyncClient(f"127.0.0.1:{running.server.port}", token=token_of(name), retry=retry, timeout=20)


async def until_refused(client: AsyncClient, error: type[ReformerError]) -> None:
    """Calls until this is what comes of it."""
    async with asyncio.timeout(5):
        while True:
            try:
                await client.load()
            except error:
                return
            await asyncio.sleep(0.01)
