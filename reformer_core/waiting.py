"""Requests that wait to begin. Owners share the engine's time: nobody waits behind all that another has asked for.

An owner is whoever a sink says it belongs to. Each one's requests keep their order.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from itertools import chain, zip_longest

from reformer_core.errors import QueueFullError
from reformer_core.requests import Request
from reformer_core.turns import Shares


def may_wait(counts: Mapping[Hashable, int], owner: Hashable, limit: int) -> bool:
    """Whether one more request of `owner` may wait: there is room, or another owner has taken more than its share.

    Args:
        counts: requests that wait, by owner.
        limit: requests that may wait altogether.
    """
    return sum(counts.values()) < limit or max(counts.values(), default=0) > counts.get(owner, 0) + 1


class WaitingRequests:
    """A bounded queue, fair among owners."""

    def __init__(self, limit: int, owners: Shares[Hashable]) -> None:
        """`owners` is what owners have had of the engine's time: who has had least comes first."""
        self._limit, self._owners = limit, owners
        self._queues: dict[Hashable, deque[Request]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __contains__(self, request: object) -> bool:
        return any(request in queue for queue in self._queues.values())

    def __iter__(self) -> Iterator[Request]:
        """In the order in which they should begin: the owner's first that has had least time, and then one of each."""
        queues = [self._queues[owner] for owner in sorted(self._queues, key=self._owners.had)]
        return (request for request in chain.from_iterable(zip_longest(*queues)) if request is not None)

    @property
    def counts(self) -> dict[Hashable, int]:
        """Requests by owner."""
        return {owner: len(queue) for owner, queue in self._queues.items()}

    def to_give_way(self, owner: Hashable) -> Request | None:
        """What has to leave for one more request of `owner`: nothing, or the latest of whoever has most here.

        Raises:
            QueueFullError: the owner has no less than others.
        """
        if len(self) < self._limit:
            return None
        if not may_wait(self.counts, owner, self._limit):
            raise QueueFullError(len(self))
        return max(self._queues.values(), key=len)[-1]

    def add(self, request: Request) -> None:
        """Joins, behind its owner's other requests."""
        self._queues.setdefault(request.owner, deque()).append(request)

    def remove(self, request: Request) -> None:
        """Leaves."""
        queue = self._queues[request.owner]
        queue.remove(request)
        if not queue:
            del self._queues[request.owner]
