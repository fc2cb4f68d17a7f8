"""The links of the chain around every call: its line in the log, counting, errors to statuses, admission."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_status import rpc_status

from reformer_server.administration import ADMIN_METHODS
from reformer_server.calls import Around, Call
from reformer_server.errors import DrainingError
from reformer_server.logs import FIELDS
from reformer_server.metrics import Metrics
from reformer_server.status import pushback, reason_of, row_of, to_status

ALWAYS_ADMITTED = ("ModelService/GetLoad", ADMIN_METHODS)  # draining is begun and watched by them

CREATES_DOCUMENT = "DocumentService/CreateDocument"

logger = logging.getLogger(__name__)


@asynccontextmanager
async def logged(call: Call) -> AsyncIterator[None]:
    """Writes a line when the call is over."""
    try:
        yield
    finally:
        if logger.isEnabledFor(logging.INFO):
            fields = call.facts.fields(time.monotonic() - call.arrived)
            logger.info("%(method)s %(code)s", fields, extra={FIELDS: fields})


def counting(metrics: Metrics) -> Around:
    """Counts calls by their status code, and times them; notes how they ended for the links around this one."""

    @asynccontextmanager
    async def around(call: Call) -> AsyncIterator[None]:
        code = grpc.StatusCode.OK
        try:
            yield
        except grpc.aio.AbortError:
            code = call.context.code()
            raise
        except (asyncio.CancelledError, grpc.aio.BaseError):  # the client went, or its deadline passed
            late = call.context.time_remaining() == 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        finally:
            seconds = time.monotonic() - call.arrived
            metrics.requests.labels(call.method, code.name).inc()
            metrics.request_duration.labels(call.method).observe(seconds)
            if call.facts.reason is not None:
                metrics.request_errors.labels(call.facts.reason).inc()
            call.facts.ended(code)

    return around


@asynccontextmanager
async def errors_to_status(call: Call) -> AsyncIterator[None]:
    """Ends the call with the status of its error; of a bug the client sees only the request id."""
    try:
        yield
    except (asyncio.CancelledError, grpc.aio.BaseError):
        raise
    except Exception as error:
        if row_of(error) is None:
            logger.exception("bug in %s request_id=%s", call.method, call.request_id)
        call.facts.reason = reason_of(error)
        told = to_status(error, call.request_id)
        status = rpc_status.to_status(told)
        trailers = (*call.trailing_metadata, *status.trailing_metadata, *pushback(told))
        await call.context.abort(status.code, status.details, trailers)


class Admission:
    """Lets calls in until the server drains, and tells when the last one is out. Some it neither bars nor counts."""

    def __init__(self) -> None:
        self.takes_documents = True
        """Else the server drains, and calls that make a document are barred."""
        self.takes_calls = True
        """Else all are."""
        self.inside = 0
        """Calls under way."""
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Raises DrainingError if the call comes too late."""
        if call.method.startswith(ALWAYS_ADMITTED):
            yield
            return
        if not (self.takes_documents if call.method == CREATES_DOCUMENT else self.takes_calls):
            raise DrainingError
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if self.inside == 0:
                self._empty.set()

    async def until_empty(self) -> None:
        """Returns when no call is under way."""
        await self._empty.wait()
