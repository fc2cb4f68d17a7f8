"""Tenants over real sockets: what each may use, whatever the others do."""

import asyncio
import time
from pathlib import Path

import pytest

from reformer_client import AsyncClient, ResourceExhaustedError, RetryPolicy
from tests.server.conftest import Running, Serve
from tests.server.tenants_files import client, table, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tenants.toml"


async def test_streams_are_limited_for_each_tenant(serve: Serve, file: Path) -> None:
    write(file, table("acme", "streams = 2"), table("umbrella", "streams = 1"))
    running = await serve(tenants=file, step_seconds=0.001)
    async with client(running, "acme") as acme, client(running, "umbrella") as umbrella:
        async with acme.generate("x", max_tokens=3000) as first, acme.generate("x", max_tokens=3000) as second:
            await anext(first)
            await anext(second)
            with pytest.raises(ResourceExhaustedError) as raised:
                await acme.score("some text")
            assert (raised.value.reason, raised.value.metadata) == ("TOO_MANY_STREAMS", {"streams": "2"})
            assert raised.value.quota_violations
            assert raised.value.retry_after_seconds == 1
            await acme.load()
            async with umbrella.generate("x", max_tokens=3000) as other:
                await anext(other)
        await running.until_idle()
        await acme.score("some text")


async def test_tokens_are_limited_for_each_tenant(serve: Serve, file: Path) -> None:
    limit = "tokens-per-minute = 3000"  # 50 a second
    running = await serve(tenants=write(file, table("acme", limit), table("umbrella", limit)))
    async with client(running, "acme") as acme, client(running, "umbrella") as umbrella:
        await acme.score("x" * 3000)
        with pytest.raises(ResourceExhaustedError) as raised:
            await acme.score("x" * 100)
        error, told = raised.value, time.monotonic()
        assert (error.reason, error.metadata) == ("TOKEN_RATE", {"tokens": "100", "tokens_per_minute": "3000"})
        assert error.quota_violations
        assert error.retry_after_seconds is not None
        assert 0 < error.retry_after_seconds <= 2
        await umbrella.score("x" * 3000)
        await asyncio.sleep(max(0.0, error.retry_after_seconds - (time.monotonic() - told)))
        await acme.score("x" * 100)


async def test_the_client_waits_as_it_is_told(serve: Serve, file: Path) -> None:
    running = await serve(tenants=write(file, table("acme", "tokens-per-minute = 3000")))
    async with client(running, "acme", RetryPolicy(initial_backoff_seconds=0, max_backoff_seconds=0)) as acme:
        began = time.monotonic()
        await acme.score("x" * 3000)
        await acme.score("x" * 40)
        assert time.monotonic() - began >= 0.8


def stop_the_clock(running: Running) -> None:
    """From here on, buckets don't fill up."""
    running.server._quotas._clock = lambda: 1000.0


async def refill_seconds(acme: AsyncClient) -> float | None:
    """How long until the bucket is full: what a call that costs all of it is told."""
    with pytest.raises(ResourceExhaustedError) as raised:
        await acme.score("x" * 4000)
    return raised.value.retry_after_seconds


async def test_what_is_read_generated_and_scored_costs_and_what_is_there_does_not(serve: Serve, file: Path) -> None:
    """At 60 tokens a minute, each takes a second to come back."""
    running = await serve(tenants=write(file, table("acme", "tokens-per-minute = 60")))
    stop_the_clock(running)
    async with client(running, "acme") as acme:
        document = await acme.documents.create("x" * 10)
        assert await refill_seconds(acme) == 10
        assert (await acme.documents.create("x" * 10)).cached
        assert await refill_seconds(acme) == 10
        await document.generate("12345", max_tokens=20).collect()
        assert await refill_seconds(acme) == 35
        await document.score_continuations(["123", "4567"])
        assert await refill_seconds(acme) == 42


async def test_a_generation_goes_into_debt_rather_than_breaking_off(serve: Serve, file: Path) -> None:
    running = await serve(tenants=write(file, table("acme", "tokens-per-minute = 60")))
    stop_the_clock(running)
    async with client(running, "acme") as acme:
        assert len((await acme.generate("x", max_tokens=180).collect()).tokens) == 180
        with pytest.raises(ResourceExhaustedError) as raised:
            await acme.generate("x", max_tokens=1).collect()
        assert raised.value.retry_after_seconds == 122


async def test_what_the_server_fails_to_do_costs_nothing(serve: Serve, file: Path) -> None:
    running = await serve(tenants=write(file, table("acme", "tokens-per-minute = 60")))
    running.engine.memory_bytes = 40
    async with client(running, "acme") as acme:
        for attempt in (acme.score("x" * 50), acme.documents.create("x" * 50)):
            with pytest.raises(ResourceExhaustedError) as raised:
                await attempt
            assert raised.value.reason == "OUT_OF_MEMORY"
        running.engine.memory_bytes = 1000
        await acme.score("x" * 60)


async def test_new_limits_hold_for_the_next_call(serve: Serve, file: Path) -> None:
    running = await serve(tenants=write(file, table("acme", "tokens-per-minute = 60")))
    async with client(running, "acme") as acme:
        await acme.score("x" * 4000)
        write(file, table("acme"))
        async with asyncio.timeout(5):
            while True:
                try:
                    await acme.score("x" * 4000)
                except ResourceExhaustedError:
                    await asyncio.sleep(0.01)
                else:
                    break
