"""When there will be more room, as far as leases tell."""

from collections.abc import Iterable

from reformer_core.pace import LONGEST_DELAY_SECONDS, SHORTEST_DELAY_SECONDS


def seconds_until_one_ends(expire_times: Iterable[float], now: float) -> float:
    """Until the first of these leases ends, in the bounds that hold for all delays: at most a minute."""
    first = min(expire_times, default=now) - now
    return min(max(first, SHORTEST_DELAY_SECONDS), LONGEST_DELAY_SECONDS)
