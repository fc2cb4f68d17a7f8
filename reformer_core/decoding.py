"""Decoding: the generations whose prompt is read take their tokens together, one each a turn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reformer_core.incremental import decode_step, tail_capacity_for
from reformer_core.requests import Resources
from reformer_core.sampling import BatchSampling, sample
from reformer_core.sampling_params import SamplingParams
from reformer_core.session_requests import GenerateRequest


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
        # The tokens of prompt and continuation, for the repetition penalty.
        shape = (resources.table.sessions, resources.model.config.vocab_size)
        self._seen = torch.zeros(shape, dtype=torch.bool, device=resources.model.device)
        self._params: list[SamplingParams] = []
        self._sampling = BatchSampling.of(self._params, resources.model.device)  # of the latest batch, often the next

    def begin(self, request: GenerateRequest) -> None:
        """The request's prompt is read: it can be part of a batch from now on."""
        seen = self._seen[request.session.row]
        seen.zero_()
        seen[request.prompt_ids.long().to(seen.device)] = True

    def choose(self, batch: Sequence[GenerateRequest]) -> list[Choice]:
        """The next token of each."""
        if not batch:
            return []
        device = self._model.device
        params = [request.params for request in batch]
        if params != self._params:
            self._params, self._sampling = params, BatchSampling.of(params, device)
        rows = torch.tensor([request.session.row for request in batch], device=device)
        steps = torch.tensor([request.generated for request in batch], device=device)
        most = max(param.top_logprobs for param in params)
        sampled = sample(self._table.next_logits[rows], self._sampling, steps, self._seen[rows], most)
        self._seen[rows, sampled.ids] = True
        choices = zip(
            params,
            sampled.ids.tolist(),
            sampled.logprobs.tolist(),
            sampled.top_ids.tolist(),
            sampled.top_logprobs.tolist(),
            strict=True,
        )
        return [
            Choice(id, logprob, tuple(zip(ids, logprobs, strict=True))[: param.top_logprobs])
            for param, id, logprob, ids, logprobs in choices
        ]

    def append(self, batch: Sequence[GenerateRequest]) -> None:
        """Appends the last token of each to its session, whose tail has room."""
        if not batch:
            return
        device = self._model.device
        sessions = [request.session for request in batch]
        for session in sessions:
            session.reserve(1)
        rows = torch.tensor([session.row for session in sessions], device=device)
        longest = max(session.tail_tokens for session in sessions)
        capacity = tail_capacity_for(longest + 1, self._table.tail_capacity)
        ids = torch.tensor([request.last_id for request in batch], device=device)
        decode_step(self._model, self._table, rows, ids, capacity)
        for session in sessions:
            session.appended(1)
