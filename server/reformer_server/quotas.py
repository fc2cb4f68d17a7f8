"""What each tenant uses of its limits now: streaming calls, and tokens of the minute.

Tokens are a bucket that holds a minute's worth and fills up steadily. A call pays before its work; what costs more than
the bucket holds begins when it is full. Generated tokens are paid as they come, if need be on credit: a generation that
has begun isn't ended, but later calls wait until the bucket has filled up again.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from reformer_core.errors import CancelledError, DeadlineExceededError
from reformer_server import tenants
from reformer_server.calls import Call
from reformer_server.errors import TokenRateError, TooManyStreamsError

BUCKET_SECONDS = 60.0


@dataclass
class _Account:
    """What one tenant uses."""

    streams: int = 0
    full_at: float = 0.0
    """When the bucket will be full, if nothing more is taken: what is missing in it, in seconds of filling it up."""


class Quotas:
    """All tenants' use. Whatever happens here happens to the tenant whose call is running, and to no other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}  # by the tenant's name

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """A link of the chain: streaming calls count while they last. Raises TooManyStreamsError."""
        if not call.streaming:
            yield
            return
        account, limit = self._account(), tenants.current().limits.streams
        if limit is not None and account.streams >= limit:
            raise TooManyStreamsError(limit)
        account.streams += 1
        try:
            yield
        finally:
            account.streams -= 1

    @asynccontextmanager
    async def paying(self, tokens: int) -> AsyncIterator[None]:
        """Pays for tokens that are to be read or scored inside. Raises TokenRateError.

        They are given back if that fails for what isn't the client's doing, such as a lack of memory. They aren't if
        the client leaves, or its deadline passes: the work has been done in vain.
        """
        self._require(tokens)
        self.spend(tokens)
        try:
            yield
        except (CancelledError, DeadlineExceededError):
            raise
        except Exception:
            self.spend(-tokens)
            raise

    def spend(self, tokens: int) -> None:
        """Charges tokens, whatever is left."""
        per_minute = tenants.current().limits.tokens_per_minute
        if per_minute is not None:
            account = self._account()
            account.full_at = max(account.full_at, self._clock()) + tokens * BUCKET_SECONDS / per_minute

    def _require(self, tokens: int) -> None:
        """Raises TokenRateError if a call of this cost has to wait; one that costs nothing yet needs a token, too."""
        per_minute = tenants.current().limits.tokens_per_minute
        if per_minute is None:
            return
        now = self._clock()
        missing_seconds = max(0.0, self._account().full_at - now)
        needed_seconds = min(max(tokens, 1) * BUCKET_SECONDS / per_minute, BUCKET_SECONDS)
        wait_seconds = missing_seconds + needed_seconds - BUCKET_SECONDS
        if wait_seconds > 0:
            raise TokenRateError(tokens, per_minute, wait_seconds)

    def _account(self) -> _Account:
        name = tenants.current().name
        account = self._accounts.get(name)
        if account is None:
            # The tenants' file may change without end. An account that says no more than a new one is forgotten.
            now = self._clock()
            self._accounts = {
                name: account for name, account in self._accounts.items() if account.streams or account.full_at > now
            }
            account = self._accounts[name] = _Account()
        return account
