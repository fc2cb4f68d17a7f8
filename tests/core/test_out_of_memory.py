"""The device's own lack of memory, in any phase: the request fails with the core's error, the next one succeeds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from reformer_core import Engine, Request, SamplingParams
from reformer_core.errors import OutOfMemoryError
from tests.core.engines import Reader, check_idle, run, run_until, text_model, tiny_engine
from tests.core.tiny import random_tokens

GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
Submit = Callable[[Engine, Reader], Request]

# What is submitted, and what of it finds no memory.
PHASES: dict[str, tuple[Submit, str]] = {
    "prefill": (lambda e, r: e.submit_prefill(random_tokens(e.model, 300), r), "lsh_pass.attend_slots"),
    "score": (lambda e, r: e.submit_score(random_tokens(e.model, 300), r), "lsh_pass.attend_slots"),
    "prompt": (
        lambda e, r: e.submit_generate(None, random_tokens(e.model, 300), GREEDY, r),
        "local_attention.attend_slots",
    ),
    "extend": (
        lambda e, r: e.submit_continuations(e.documents[0], [random_tokens(e.model, 100)], r),
        "extend.extend_slice",
    ),
    "decode": (
        lambda e, r: e.submit_generate(e.documents[0], random_tokens(e.model, 10), GREEDY, r),
        "decode_graphs.decode_step",
    ),
}


def allocate_too_much(*_: Any, **__: Any) -> torch.Tensor:
    return torch.empty(2**60, dtype=torch.uint8)  # what torch says to that is its own


def lack_on_a_gpu(*_: Any, **__: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def lack_in_python(*_: Any, **__: Any) -> torch.Tensor:
    raise MemoryError


@pytest.mark.parametrize("lack", [allocate_too_much, lack_on_a_gpu, lack_in_python])
@pytest.mark.parametrize("phase", PHASES)
def test_the_request_fails_and_the_next_one_succeeds(
    monkeypatch: pytest.MonkeyPatch, phase: str, lack: Callable[..., torch.Tensor]
) -> None:
    engine = tiny_engine(text_model(axial_pos_shape=(16, 64)))
    document = engine.prefill(random_tokens(engine.model, 200))
    submit, place = PHASES[phase]
    waiting, failing, succeeding = Reader(room=0), Reader(), Reader()
    parked = engine.submit_generate(document, random_tokens(engine.model, 10), GREEDY, waiting)
    run_until(engine, lambda: parked.phase == "decode")
    with monkeypatch.context() as patch:
        patch.setattr(f"reformer_core.{place}", lack)
        run(engine, submit(engine, failing))
    assert isinstance(failing.error, OutOfMemoryError)
    assert failing.error.fits_when_idle  # worth another try
    assert failing.error.needed_bytes > 0
    run(engine, submit(engine, succeeding))
    assert succeeding.reason is not None
    waiting.room = None
    run(engine, parked)
    assert len(waiting.ids) == GREEDY.max_tokens
    for each in engine.documents:
        if each is not document:
            each.close()
    check_idle(engine, [document])
