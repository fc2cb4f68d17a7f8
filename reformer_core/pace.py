"""How fast requests have been served lately: what deadlines and delays are judged by. It decides nothing by itself."""

from dataclasses import dataclass, field

from reformer_core.requests import Request
from reformer_core.session_requests import GenerateRequest

RECENT = 0.1  # weight of the latest observation in a mean
FADING = 0.98  # of the best speed, at every observation that doesn't reach it
SHORTEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 60.0


@dataclass
class Mean:
    """Of what was observed, recent values counting more."""

    value: float | None = None

    def observe(self, value: float) -> None:
        """One more."""
        self.value = value if self.value is None else self.value + RECENT * (value - self.value)


@dataclass
class Pace:
    """Of one engine."""

    _tokens_per_second: dict[type[Request], float] = field(default_factory=dict)
    _used_share: Mean = field(default_factory=Mean)  # of max_tokens
    _seconds_per_token: Mean = field(default_factory=Mean)
    _seconds_between_ends: Mean = field(default_factory=Mean)
    _last_end: float | None = None

    def read(self, request: Request) -> None:
        """A request's tokens were read, in the time that it was worked on."""
        if request.worked_seconds > 0 and request.tokens > 0:
            kind, speed = type(request), request.tokens / request.worked_seconds
            self._tokens_per_second[kind] = max(speed, FADING * self._tokens_per_second.get(kind, 0.0))

    def ended(self, request: Request, now: float) -> None:
        """A request that had begun is over; `now` is an instant of time.monotonic()."""
        if self._last_end is not None:
            self._seconds_between_ends.observe(now - self._last_end)
        self._last_end = now
        if isinstance(request, GenerateRequest) and request.generated > 1:
            self._used_share.observe(request.generated / request.params.max_tokens)
            self._seconds_per_token.observe(request.timings.decode_seconds / (request.generated - 1))

    def expected_seconds(self, request: Request, *, decoding: bool) -> float:
        """Until a request that begins now has read its tokens and, with `decoding`, is over.

        As far as that can be known: reading goes at the best speed there was, as if nothing else were done; a
        generation decodes as others did lately, and ends as early.
        """
        speed = self._tokens_per_second.get(type(request))
        seconds = 0.0 if speed is None else request.tokens / speed
        if decoding and isinstance(request, GenerateRequest):
            tokens = (self._used_share.value or 0.0) * request.params.max_tokens
            seconds += tokens * (self._seconds_per_token.value or 0.0)
        return seconds

    def seconds_to_serve(self, waiting: int) -> float:
        """Until so many waiting requests have begun, if they go on ending as fast as lately: an honest delay."""
        seconds = waiting * (self._seconds_between_ends.value or 0.0)
        return min(max(seconds, SHORTEST_DELAY_SECONDS), LONGEST_DELAY_SECONDS)
