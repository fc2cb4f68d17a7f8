"""The response side of one Generate call: events in, messages out, and what the metrics want to know of it."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby

from reformer.v1 import inference_pb2 as pb
from reformer_core.events import Event, Finished, Progress, Token
from reformer_server import call_facts, convert
from reformer_server.entries import InUse
from reformer_server.metrics import Metrics


class Generation:
    """Counts what has been generated."""

    def __init__(self, arrived: float, in_use: InUse | None, prompt_tokens: int, metrics: Metrics) -> None:
        """`arrived` is the time.monotonic() of the call's arrival."""
        self._arrived = arrived
        self._cached_tokens = in_use.document.tokens if in_use else 0
        self._prompt_tokens = prompt_tokens
        self._output_tokens = 0
        self._cache = "miss" if in_use is None else "restored" if in_use.restored else "hit"
        self._first_token_seconds: float | None = None
        self._metrics = metrics
        facts = call_facts.current()
        facts.cached_tokens, facts.prompt_tokens = self._cached_tokens, prompt_tokens

    def started(self, seed: int) -> pb.GenerateResponse:
        """The request is valid and queued."""
        if self._cache == "hit":
            self._metrics.prefill_tokens.labels("cached").inc(self._cached_tokens)
        self._metrics.prefill_tokens.labels("computed").inc(self._prompt_tokens)
        return pb.GenerateResponse(started=pb.GenerateStarted(usage=self._usage(), seed=seed))

    def responses(self, events: Sequence[Event]) -> Iterator[pb.GenerateResponse]:
        """The messages for events that arrived together; tokens in a row share one."""
        for is_token, group in groupby(events, lambda event: isinstance(event, Token)):
            if is_token:
                yield self._tokens([event for event in group if isinstance(event, Token)])
                continue
            for event in group:
                if isinstance(event, Progress):
                    yield pb.GenerateResponse(progress=convert.progress(event))
                elif isinstance(event, Finished):
                    yield self._finished(event)

    def _tokens(self, tokens: Sequence[Token]) -> pb.GenerateResponse:
        if self._first_token_seconds is None:
            self._first_token_seconds = time.monotonic() - self._arrived
            self._metrics.time_to_first_token.labels(self._cache).observe(self._first_token_seconds)
        self._output_tokens += len(tokens)
        self._metrics.generated_tokens.inc(len(tokens))
        return pb.GenerateResponse(tokens=convert.token_chunk(tokens))

    def _finished(self, event: Finished) -> pb.GenerateResponse:
        if self._output_tokens > 1:
            mean = event.timings.decode_seconds / (self._output_tokens - 1)
            self._metrics.time_per_output_token.observe(mean)
        finished = pb.GenerateFinished(
            reason=convert.FINISH_REASONS[event.reason],
            usage=self._usage(),
            timings=convert.timings(event.timings, self._first_token_seconds),
        )
        return pb.GenerateResponse(finished=finished)

    def _usage(self) -> pb.Usage:
        return pb.Usage(
            cached_tokens=self._cached_tokens,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
        )
