"""Requests that wait to begin. Owners take turns, so that nobody has to wait behind all that another one has asked for.

An owner is whoever a sink says it belongs to. Each one's requests keep their order.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from itertools import chain, zip_longest

from reformer_core.errors import QueueFullError
from reformer_core.requests import Request


def may_wait(counts: Mapping[Hashable, int], owner: Hashable, limit: int) -> bool:
    """Whether one more request of `owner` may wait: there is room, or another owner has taken more than its share.

    Args:
        counts: requests that wait, by owner.
        limit: requests that may wait altogether.
    """
    return sum(counts.values()) < limit or max(counts.values(), default=0) > counts.get(owner, 0) + 1


class WaitingRequests:
    """A bounded queue, fair among owners."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queues: dict[Hashable, deque[Request]] = {}
        self._turns: dict[Hashable, int] = {}  # of owners that have something here: when they last began something
        self._turn = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __contains__(self, request: object) -> bool:
        return any(request in queue for queue in self._queues.values())

    def __iter__(self) -> Iterator[Request]:
        """In the order in which they should begin: the owner first that waits for its turn longest, one of each."""
        queues = [self._queues[owner] for owner in sorted(self._queues, key=self._turns.__getitem__)]
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
        owner = request.sink.owner
        self._queues.setdefault(owner, deque()).append(request)
        self._turns.setdefault(owner, self._turn)

    def remove(self, request: Request, *, begins: bool = False) -> None:
        """Leaves; if it begins, its owner's next one comes after those of the others."""
        owner = request.sink.owner
        queue = self._queues[owner]
        queue.remove(request)
        if begins:
            self._turn += 1
            self._turns[owner] = self._turn
        if not queue:
            del self._queues[owner], self._turns[owner]
