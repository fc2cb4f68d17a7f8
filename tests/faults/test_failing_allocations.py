"""Allocations that fail, anywhere in the engine's work: one request fails for it, or none, and nothing is lost."""

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bars import Bar
from reformer_core import Document, Engine, Request, SamplingParams
from reformer_core.errors import OutOfMemoryError
from reformer_core.events import ContinuationScored, DocumentReady, Failed, Scores
from tests.core.engines import Reader, check_idle, run, run_until, text_model, tiny_engine
from tests.core.tiny import random_tokens
from tests.faults.campaign import Campaign

DRAWN = SamplingParams(max_tokens=6, temperature=1.0, seed=3, repetition_penalty=1.2, top_p=0.9)
Submit = Callable[[Engine, Document, Reader], Request]

SUBMIT: dict[str, Submit] = {
    "prefill": lambda e, d, r: e.submit_prefill(random_tokens(e.model, 130), r, keep_scores=True),
    "score": lambda e, d, r: e.submit_score(random_tokens(e.model, 130), r),
    "prompt": lambda e, d, r: e.submit_generate(None, random_tokens(e.model, 70), DRAWN, r),
    "generate": lambda e, d, r: e.submit_generate(d, random_tokens(e.model, 30), DRAWN, r),
    "continuations": lambda e, d, r: e.submit_continuations(d, [random_tokens(e.model, 30)] * 2, r),
}


class Allocations(TorchDispatchMode):
    """Counts the tensors that are made, and fails to make one of them."""

    def __init__(self, failing: int | None = None) -> None:
        super().__init__()
        self.count, self._failing = 0, failing

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (function.is_view or function._schema.is_mutable):
            self.count += 1
            if self.count == self._failing:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return function(*args, **(kwargs or {}))


def result(reader: Reader) -> tuple[list[int], str, list[float]]:
    """What it was told: ids, text, and log-probabilities, whose last bits depend on who else was in a batch."""
    scores = [event.logprobs for event in reader.events if isinstance(event, Scores | ContinuationScored)]
    scores += [each.scores for each in documents(reader)]
    values = [value for each in scores for value in each.nan_to_num().tolist()]
    return reader.ids, reader.text, [*values, *(token.logprob for token in reader.tokens)]


def documents(reader: Reader) -> list[Document]:
    return [event.document for event in reader.events if isinstance(event, DocumentReady)]


def work(engine: Engine, document: Document, submit: Submit, allocations: Allocations) -> list[Reader]:
    """Two generations that are under way, and then what is submitted, to their ends.

    What fails while it is submitted is told to whoever submits it; its reader hears nothing.
    """
    readers = [Reader() for _ in range(3)]
    requests = [engine.submit_generate(document, random_tokens(engine.model, 5), DRAWN, each) for each in readers[:2]]
    run_until(engine, lambda: all(request.phase == "decode" for request in requests))
    with allocations:
        with suppress(torch.OutOfMemoryError):
            requests.append(submit(engine, document, readers[2]))
        run(engine, *requests)
    for reader in readers:
        for each in documents(reader):
            each.close()
    check_idle(engine, [document])
    return readers


@pytest.mark.usefixtures("many_slices", "small_tails")
def test_any_allocation_in_the_engine(campaign: Campaign) -> None:
    fault, randomness = "allocations that fail in the engine", random.Random(5)
    engine = tiny_engine(text_model(axial_pos_shape=(16, 64)))
    document = engine.prefill(random_tokens(engine.model, 130))
    made, expected = {}, {}
    for kind, submit in SUBMIT.items():
        allocations = Allocations()
        expected[kind] = [result(reader) for reader in work(engine, document, submit, allocations)]
        made[kind] = allocations.count
    failures, requests = 0, 0
    for number in range(campaign.times(fault)):
        kind = list(SUBMIT)[number % len(SUBMIT)]
        readers = work(engine, document, SUBMIT[kind], Allocations(randomness.randint(1, made[kind])))
        refused = [reader for reader in readers if not reader.events]
        ended = [reader for reader in readers if reader.events and isinstance(reader.events[-1], Failed)]
        failed = refused + ended
        assert len(failed) <= 1
        assert all(isinstance(reader.error, OutOfMemoryError) for reader in ended)
        for reader, whole in zip(readers, expected[kind], strict=True):
            ids, text, logprobs = whole
            assert reader in failed or result(reader) == (ids, text, pytest.approx(logprobs, abs=1e-4))
        failures, requests = failures + len(failed), requests + len(readers)
    campaign.measured(
        fault,
        Bar("requests that failed, of all beside an allocation that did", failures / requests, most=1 / 3),
    )
