"""Work that several calls follow."""

import asyncio

from reformer_server.joint import JointWork, Report


async def test_nobody_joins_what_has_failed() -> None:
    """One that follows it for long, because its client doesn't read, mustn't fail the others."""
    given_up: list[int] = []
    joint: JointWork[str, int] = JointWork(given_up.append)
    outcomes = [ValueError("full"), None]

    async def begin(report: Report) -> int:
        error = outcomes.pop(0)
        if error is not None:
            raise error
        return 7

    async with joint.follow("a", begin) as first:
        await asyncio.wait({first.task})
        async with joint.follow("a", begin) as second:
            assert await second.result() == 7
            async with joint.follow("a", begin) as third:
                assert third is second
    assert given_up == [7]
    assert not joint._work
