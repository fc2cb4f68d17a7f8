"""Quotas by themselves, with a clock that stands still: what is charged to whom, and how long to wait."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_core.errors import CancelledError, DeadlineExceededError, OutOfMemoryError
from reformer_core.events import Started, Token
from reformer_server import tenants
from reformer_server.call_facts import CallFacts
from reformer_server.calls import Call
from reformer_server.errors import DrainingError, TokenRateError, TooManyStreamsError
from reformer_server.quotas import Quotas
from reformer_server.tenants import Limits, Tenant
from tests.server.clock import Clock

NO_CONTEXT: Any = None
STREAM = Call("InferenceService/Generate", True, NO_CONTEXT, CallFacts(request_id="r1"))
UNARY = Call("ModelService/GetLoad", False, NO_CONTEXT, CallFacts(request_id="r1"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(clock)


def tenant(name: str = "acme", **limits: int) -> Tenant:
    return Tenant(name, Limits(**limits))


async def pay(quotas: Quotas, tokens: int) -> float:
    """Pays, or returns after how many seconds it can be paid."""
    try:
        async with quotas.paying(tokens):
            return 0
    except TokenRateError as error:
        return error.retry_seconds


async def test_a_minutes_worth_at_once_and_then_as_it_fills_up(quotas: Quotas, clock: Clock) -> None:
    with tenants.entered(tenant(tokens_per_minute=600)):
        assert await pay(quotas, 400) == 0
        assert await pay(quotas, 200) == 0
        assert await pay(quotas, 1) == pytest.approx(0.1)
        assert await pay(quotas, 50) == pytest.approx(5)
        clock.now += 4.99
        assert await pay(quotas, 50) == pytest.approx(0.01)
        clock.now += 0.011
        assert await pay(quotas, 50) == 0
        clock.now += 3600
        assert await pay(quotas, 600) == 0, "an hour's silence fills the bucket, and no more"
        assert await pay(quotas, 1) > 0


async def test_what_costs_more_than_the_bucket_holds_begins_when_it_is_full(quotas: Quotas, clock: Clock) -> None:
    with tenants.entered(tenant(tokens_per_minute=600)):
        assert await pay(quotas, 1) == 0
        assert await pay(quotas, 6000) == pytest.approx(0.1)
        clock.now += 0.2
        assert await pay(quotas, 6000) == 0
        assert await pay(quotas, 1) == pytest.approx(540.1), "the debt is paid first"


async def test_generated_tokens_go_on_credit(quotas: Quotas) -> None:
    with tenants.entered(tenant(tokens_per_minute=60)):
        async with quotas.paying(0) as payment:
            for _ in range(10):
                payment.saw([Started(0.0), *[Token(1, 0.0, "x")] * 10])
        assert await pay(quotas, 0) == pytest.approx(41), "even what costs nothing yet waits for one token"


@pytest.mark.parametrize(
    ("error", "begun", "given_back"),
    [
        (OutOfMemoryError(5, 4), False, True),
        (OutOfMemoryError(5, 4), True, True),
        (DrainingError(), True, True),
        (DeadlineExceededError(), False, True),
        (DeadlineExceededError(), True, False),
        (CancelledError(), True, False),
        (asyncio.CancelledError(), False, True),
        (asyncio.CancelledError(), True, False),
        (GeneratorExit(), True, False),
    ],
    ids=str,
)
async def test_what_is_given_back(quotas: Quotas, error: BaseException, begun: bool, given_back: bool) -> None:
    with tenants.entered(tenant(tokens_per_minute=600)):

        async def fail() -> None:
            async with quotas.paying(600) as payment:
                payment.saw([Started(0.0)] if begun else [])
                raise error

        with pytest.raises(type(error)):
            await fail()
        assert await pay(quotas, 600) == pytest.approx(0 if given_back else 60)


async def test_refusing_costs_nothing(quotas: Quotas) -> None:
    with tenants.entered(tenant(tokens_per_minute=60)):
        assert await pay(quotas, 60) == 0
        assert [await pay(quotas, 30) for _ in range(5)] == [pytest.approx(30)] * 5


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 5000)), max_size=30))
async def test_the_delay_is_exactly_long_enough(calls: list[tuple[float, int]]) -> None:
    clock = Clock()
    quotas = Quotas(clock)
    with tenants.entered(tenant(tokens_per_minute=1000)):
        for pause, tokens in calls:
            clock.now += pause
            wait = await pay(quotas, tokens)
            if wait:
                clock.now += wait - 0.002
                assert await pay(quotas, tokens) > 0
                clock.now += 0.002 + 0.001
                assert await pay(quotas, tokens) == 0


async def test_streams_are_counted_while_they_last(quotas: Quotas) -> None:
    with tenants.entered(tenant(streams=2)):
        async with quotas.around(STREAM), quotas.around(STREAM):
            with pytest.raises(TooManyStreamsError) as raised:
                async with quotas.around(STREAM):
                    pass
            assert raised.value.streams == 2
            async with quotas.around(UNARY):
                pass
        with pytest.raises(ZeroDivisionError):
            async with quotas.around(STREAM):
                raise ZeroDivisionError
        async with quotas.around(STREAM), quotas.around(STREAM):
            pass


async def test_nobody_pays_for_others(quotas: Quotas) -> None:
    limits = {"streams": 1, "tokens_per_minute": 10}
    with tenants.entered(tenant("acme", **limits)):
        async with quotas.around(STREAM):
            assert await pay(quotas, 1000) == 0
            with tenants.entered(tenant("umbrella", **limits)):
                async with quotas.around(STREAM):
                    assert await pay(quotas, 10) == 0
    async with quotas.around(STREAM), quotas.around(STREAM):
        assert await pay(quotas, 10**9) == await pay(quotas, 10**9) == 0, "anonymous has no limits"


async def test_new_limits_count_at_once(quotas: Quotas) -> None:
    with tenants.entered(tenant(tokens_per_minute=60)):
        assert await pay(quotas, 60) == 0
        assert await pay(quotas, 1) > 0
    with tenants.entered(tenant()):
        assert await pay(quotas, 10**6) == 0


async def test_memory_is_bounded_by_those_that_use_something(quotas: Quotas, clock: Clock) -> None:
    for number in range(100):
        with tenants.entered(tenant(f"tenant-{number}", tokens_per_minute=60)):
            assert await pay(quotas, 60) == 0
        clock.now += 15
    assert len(quotas._accounts) <= 5
