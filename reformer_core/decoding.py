"""Decoding: the generations whose prompt is read take their tokens together, one each a turn."""

from collections.abc import Sequence
from dataclasses import dataclass

from reformer_core.decode_graphs import DecodeSteps
from reformer_core.errors import lacks_memory
from reformer_core.incremental import undo_decode_step
from reformer_core.requests import Resources
from reformer_core.sampling import BatchSampling, sample
from reformer_core.sampling_params import SamplingParams
from reformer_core.session_requests import GenerateRequest
from reformer_core.transfers import to_device, to_host


@dataclass(frozen=True)
class Choice:
    """The token that was sampled for a request."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(id, logprob) of the most likely ones, as many as the request asked for."""


class Decoding:
    """One step of any batch of generations, in two halves: choose a token for each, and append it where it goes on."""

    def __init__(self, resources: Resources) -> None:
        self._model, self._table = resources.model, resources.table
        self._steps = DecodeSteps(resources.model, resources.table)
        self._params: list[SamplingParams] = []
        self._sampling = BatchSampling.of(self._params, resources.model.device)  # of the latest batch, often the next

    def begin(self, request: GenerateRequest) -> None:
        """The request's prompt is read: it can be part of a batch from now on."""
        seen = self._table.seen_ids[request.session.row]
        seen.zero_()
        seen[request.prompt_ids.long().to(seen.device)] = True

    def choose(self, batch: Sequence[GenerateRequest]) -> list[tuple[GenerateRequest, Choice]]:
        """The next token of each, in any order. If it raises, nothing was chosen."""
        if not batch:
            return []
        batch, table, device = self._side_by_side(batch), self._table, self._model.device
        params = [request.params for request in batch]
        if params != self._params:
            self._params, self._sampling = params, BatchSampling.of(params, device)
        steps = to_device([request.generated for request in batch], device)
        most = max(param.top_logprobs for param in params)
        seen_ids = table.seen_ids[: len(batch)]
        sampled = sample(table.next_logits[: len(batch)], self._sampling, steps, seen_ids, most)
        ids, logprobs, *top = (x.tolist() for x in to_host(sampled.ids, sampled.logprobs, *sampled.top))
        seen_ids.scatter_(1, sampled.ids.unsqueeze(1), True)
        tops = [tuple(zip(*pair, strict=True)) for pair in zip(*top, strict=True)] if top else [()] * len(batch)
        choices = zip(params, ids, logprobs, tops, strict=True)
        found = [Choice(id, logprob, top[: param.top_logprobs]) for param, id, logprob, top in choices]
        return list(zip(batch, found, strict=True))

    def append(self, batch: Sequence[GenerateRequest]) -> None:
        """Appends the last token of each to its session, whose tail has room.

        If it raises for want of memory, nothing was appended.
        """
        if not batch:
            return
        batch = self._side_by_side(batch)
        sessions = [request.session for request in batch]
        for session in sessions:
            session.reserve(1)
        longest = max(session.tail_tokens for session in sessions)
        capacity = self._steps.tail_capacity(longest + 1)
        try:
            self._steps.take([request.last_id for request in batch], capacity)
        except Exception as error:
            if lacks_memory(error):
                error.__traceback__ = None  # and with it, what the step has allocated
                undo_decode_step(self._table, len(batch), capacity)
            raise
        for session in sessions:
            session.appended(1)

    def _side_by_side(self, batch: Sequence[GenerateRequest]) -> list[GenerateRequest]:
        """Moves the sessions to the table's first rows, and returns the requests in the order of these rows."""
        self._table.arrange([request.session for request in batch])
        return sorted(batch, key=lambda request: request.session.row)
