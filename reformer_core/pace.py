"""How fast requests have been served lately: what deadlines and delays are judged by. It decides nothing by itself."""

from dataclasses import dataclass, field

from reformer_core.requests import Request
from reformer_core.session_requests import GenerateRequest

RECENT = 0.1  # weight of the latest observation
DEVIATIONS = 2.0  # that a cautious estimate is above the mean
TELLING_TOKENS = 1024  # a shorter one's speed says nothing of a long one's
OPTIMISM = 1.5  # how much faster than ever before a reading might be
FADING = 0.98  # of the best speed, at every observation that doesn't reach it
SHORTEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 60.0


@dataclass
class Recent:
    """Mean and mean deviation of what was observed lately; 0 before the first observation."""

    mean: float = 0.0
    deviation: float = 0.0
    _observed: bool = False

    def observe(self, value: float) -> None:
        """One more."""
        if not self._observed:
            self.mean, self._observed = value, True
        self.deviation += RECENT * (abs(value - self.mean) - self.deviation)
        self.mean += RECENT * (value - self.mean)

    @property
    def cautious(self) -> float:
        """What it seldom exceeds."""
        return self.mean + DEVIATIONS * self.deviation


@dataclass
class Pace:
    """Of one engine."""

    _tokens_per_second: dict[type[Request], float] = field(default_factory=dict)
    _used_share: Recent = field(default_factory=Recent)  # of max_tokens
    _seconds_per_token: Recent = field(default_factory=Recent)
    _seconds_between_ends: Recent = field(default_factory=Recent)
    _last_end: float | None = None

    def read(self, request: Request) -> None:
        """A request's tokens were read, in the time that it was worked on."""
        if request.worked_seconds > 0 and request.tokens >= TELLING_TOKENS:
            kind, speed = type(request), request.tokens / request.worked_seconds
            self._tokens_per_second[kind] = max(speed, FADING * self._tokens_per_second.get(kind, 0.0))

    def ended(self, request: Request, now: float, *, well: bool) -> None:
        """A request that had begun is over, well or by an error; `now` is an instant of time.monotonic()."""
        if self._last_end is not None:
            self._seconds_between_ends.observe(now - self._last_end)
        self._last_end = now
        if well and isinstance(request, GenerateRequest) and request.generated > 1:
            self._used_share.observe(request.generated / request.params.max_tokens)
            if not request.was_parked:  # else its reader's pace would be taken for the engine's
                self._seconds_per_token.observe(request.timings.decode_seconds / (request.generated - 1))

    def idle(self) -> None:
        """Nothing is left to do: the time until the next end says nothing of a request's."""
        self._last_end = None

    def reading_speed(self, kind: type[Request]) -> float | None:
        """Tokens a second that such requests won't exceed: half as many again as at best; None: not known yet."""
        best = self._tokens_per_second.get(kind)
        return None if best is None else OPTIMISM * best

    def expected_seconds(self, request: Request, *, decoding: bool) -> float:
        """Until a request that begins now has read its tokens and, with `decoding`, is over.

        As far as that can be known: reading goes at its best speed, as if nothing else were done; a generation takes as
        long as others seldom exceeded lately, and ends as early as they did.
        """
        speed = self.reading_speed(type(request))
        seconds = 0.0 if speed is None else request.tokens / speed
        if decoding and isinstance(request, GenerateRequest):
            tokens = self._used_share.mean * request.params.max_tokens
            seconds += tokens * self._seconds_per_token.cautious
        return seconds

    def seconds_to_serve(self, waiting: int) -> float:
        """Until so many waiting requests have begun, if they go on ending as fast as lately: an honest delay."""
        seconds = waiting * self._seconds_between_ends.mean
        return min(max(seconds, SHORTEST_DELAY_SECONDS), LONGEST_DELAY_SECONDS)
