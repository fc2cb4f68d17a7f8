"""After an error of CUDA's own nothing can be computed any more: the engine stops, and is to be started anew."""

from typing import Any

import pytest
import torch

from reformer_core import Engine, Request, SamplingParams
from reformer_core.errors import OutOfMemoryError
from tests.core.engines import Reader, run_until, text_model, tiny_engine
from tests.core.tiny import random_tokens

GREEDY = SamplingParams(max_tokens=20, temperature=0.0)


def lose_the_device(*_: Any, **__: Any) -> torch.Tensor:
    raise torch.AcceleratorError("CUDA error: device-side assert triggered")


def submit(engine: Engine, what: str, reader: Reader) -> Request:
    if what == "prefill":
        return engine.submit_prefill(random_tokens(engine.model, 300), reader)
    return engine.submit_generate(None, random_tokens(engine.model, 10), GREEDY, reader)


@pytest.mark.parametrize(
    ("what", "place"), [("prefill", "lsh_pass.attend_slots"), ("generate", "decode_graphs.DecodeSteps.take")]
)
def test_the_engine_stops(monkeypatch: pytest.MonkeyPatch, what: str, place: str) -> None:
    engine, reader, other = tiny_engine(text_model()), Reader(), Reader(room=0)
    parked = submit(engine, "generate", other)
    run_until(engine, lambda: parked.phase == "decode")
    submit(engine, what, reader)
    monkeypatch.setattr(f"reformer_core.{place}", lose_the_device)
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        run_until(engine, lambda: False)
    assert isinstance(reader.error, torch.AcceleratorError), "its reader gets it before"


@pytest.mark.parametrize(
    ("what", "place"), [("prefill", "lsh_pass.attend_slots"), ("generate", "decode_graphs.DecodeSteps.take")]
)
def test_memory_that_cuda_itself_lacks_loses_nothing(monkeypatch: pytest.MonkeyPatch, what: str, place: str) -> None:
    """As for pinned memory, or within a library: it doesn't come from torch's allocator, and has another class."""

    def lacks_memory(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in ...")

    engine, reader = tiny_engine(text_model()), Reader()
    submit(engine, what, reader)
    with monkeypatch.context() as short:
        short.setattr(f"reformer_core.{place}", lacks_memory)
        run_until(engine, lambda: reader.over)
    assert isinstance(reader.error, OutOfMemoryError)
    submit(engine, what, again := Reader())
    run_until(engine, lambda: again.over)
    assert again.reason is not None
