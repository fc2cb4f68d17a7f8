"""What a call is about and what it takes, gathered while it runs for its line in the log and its trace: no content."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import grpc

from reformer_core.events import ContinuationScored, Event, Failed, Finished, Scores, Started, Token
from reformer_server.tenants import ANONYMOUS

Reading = Literal["prefill", "restore"]
"""How a request of the engine comes by what it works on: reads it, or takes it back from the store."""


@dataclass(frozen=True)
class Phase:
    """A part of the engine's work for a call; begin and end are instants of time.time()."""

    name: Literal["queue", "decode"] | Reading
    begin: float
    end: float


@dataclass
class CallFacts:
    """Filled in by whoever learns something. What stays None or 0 doesn't apply to the call."""

    method: str = ""
    request_id: str = ""
    peer: str = ""
    arrived: float = field(default_factory=time.time)
    tenant: str | None = ANONYMOUS.name
    """None: the call hasn't proved whose it is."""
    document_id: str | None = None
    code: grpc.StatusCode | None = None
    """How it ended; None while it runs."""
    reason: str | None = None
    """That of the error it ended with, as the client sees it."""
    cached_tokens: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    scored_tokens: int = 0
    phases: list[Phase] = field(default_factory=list)
    trace_id: str | None = None
    _first_token: float | None = None
    _work: tuple[Reading, float] | None = None  # what the engine is doing, and since when

    def saw(self, event: Event, reading: Reading) -> None:
        """One of the call's requests has told something."""
        now = time.time()
        if isinstance(event, Started):
            self._add_phase("queue", now - event.queued_seconds, now)
            self._work = (reading, now)
        elif isinstance(event, Token):
            self.generated_tokens += 1
            self._first_token = self._first_token or now
        elif isinstance(event, Scores | ContinuationScored):
            self.scored_tokens += len(event.logprobs)
        elif isinstance(event, Finished | Failed):
            if self._work is None:  # it never left the queue
                self._add_phase("queue", now - event.timings.queued_seconds, now)
            self._end_work(now, event.timings.decode_seconds)

    def ended(self, code: grpc.StatusCode) -> None:
        """The call is over, perhaps before its work is."""
        now = time.time()
        self.code = code
        self._end_work(now, now - self._first_token if self._first_token else 0.0)

    def seconds(self, phase: str) -> float | None:
        """How long that phase took; None: there was none."""
        found = [each.end - each.begin for each in self.phases if each.name == phase]
        return sum(found) if found else None

    @property
    def first_token_seconds(self) -> float | None:
        """From the call's arrival."""
        return None if self._first_token is None else self._first_token - self.arrived

    def fields(self, total_seconds: float) -> dict[str, str | int | float]:
        """What its line in the log says."""
        seconds = {
            "queue_seconds": self.seconds("queue"),
            "prefill_seconds": self.seconds("prefill"),
            "restore_seconds": self.seconds("restore"),
            "decode_seconds": self.seconds("decode"),
            "first_token_seconds": self.first_token_seconds,
            "total_seconds": total_seconds,
        }
        known: dict[str, str | int | float | None] = {
            "method": self.method,
            "code": self.code.name if self.code else None,
            "reason": self.reason,
            "request_id": self.request_id,
            "tenant": self.tenant,
            "document_id": self.document_id,
            "peer": self.peer,
            "cached_tokens": self.cached_tokens or None,
            "prompt_tokens": self.prompt_tokens or None,
            "generated_tokens": self.generated_tokens or None,
            "scored_tokens": self.scored_tokens or None,
            **{name: None if value is None else round(value, 6) for name, value in seconds.items()},
            "trace_id": self.trace_id,
        }
        return {name: value for name, value in known.items() if value is not None}

    def _end_work(self, now: float, decode_seconds: float) -> None:
        if self._work is not None:
            reading, since = self._work
            decoding = max(now - decode_seconds, since)
            self._add_phase(reading, since, decoding)
            if decoding < now:
                self._add_phase("decode", decoding, now)
        self._work = None

    def _add_phase(self, name: Literal["queue", "decode"] | Reading, begin: float, end: float) -> None:
        self.phases.append(Phase(name, begin, end))


_current: ContextVar[CallFacts | None] = ContextVar("call_facts", default=None)


def current() -> CallFacts:
    """Those of the call that is running; outside of any call, some that nobody will look at."""
    return _current.get() or CallFacts()


def current_request_id() -> str | None:
    """That of the call that is running, if one is."""
    facts = _current.get()
    return facts.request_id if facts else None


@contextmanager
def entered(facts: CallFacts) -> Iterator[None]:
    """What happens inside, and in the tasks that it starts, is this call's."""
    token = _current.set(facts)
    try:
        yield
    finally:
        _current.reset(token)
