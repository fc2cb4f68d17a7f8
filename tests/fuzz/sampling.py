"""The choice of the next token at the extremes of its parameters and of the model's logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st

from reformer_core import SamplingParams
from reformer_core.errors import InvalidParameterError
from reformer_core.sampling import BatchSampling, sample
from tests.fuzz.target import Judge, Target

VOCABULARY = 7
Case = tuple[list[dict[str, Any]], list[float]]

_FLOATS = st.sampled_from([0.0, -0.0, 1.0, 1e-45, 1e-320, 1e-38, 3.4e38, 1e308, -1.0, 0.5, float("nan"), float("inf")])
_INTEGERS = st.sampled_from([0, 1, -1, 3, VOCABULARY, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**64])
_LOGITS = st.sampled_from([0.0, 1.0, -1.0, 88.0, 1e30, -1e30, 3.4e38, -3.4e38]) | st.floats(-100, 100, width=32)
_PARAMETERS = {
    "temperature": _FLOATS,
    "repetition_penalty": _FLOATS,
    "top_p": _FLOATS,
    "min_p": _FLOATS,
    "top_k": _INTEGERS,
    "seed": _INTEGERS,
    "max_tokens": _INTEGERS,
    "stop_ids": _INTEGERS.map(lambda id: (id,)),
    "stop": st.sampled_from([(), ("",), ("a",) * 17, ("a" * 1000,)]),
    "top_logprobs": st.sampled_from([0, 1, 20, 21, -1]),
}


def _cases() -> st.SearchStrategy[Case]:
    sessions = st.lists(st.fixed_dictionaries({}, optional=_PARAMETERS), min_size=1, max_size=3)
    return st.tuples(sessions, st.lists(_LOGITS, min_size=VOCABULARY, max_size=VOCABULARY))


@contextmanager
def _choosing() -> Iterator[Judge[Case]]:
    def judge(case: Case) -> None:
        sessions, values = case
        accepted = []
        for parameters in sessions:
            try:
                accepted.append(SamplingParams(**parameters))
            except InvalidParameterError:
                continue
        if not accepted:
            return
        count = len(accepted)
        logits = torch.tensor([values] * count, dtype=torch.float32)
        seen = torch.zeros(count, VOCABULARY, dtype=torch.bool)
        seen[:, ::2] = True
        batch = BatchSampling.of(accepted, torch.device("cpu"))
        top = max(params.top_logprobs for params in accepted)
        sampled = sample(logits, batch, torch.arange(count), seen, top)
        assert bool(((sampled.ids >= 0) & (sampled.ids < VOCABULARY)).all())
        assert not bool(sampled.logprobs.isnan().any())

    yield judge


SAMPLING = Target("sampling", "sampling parameters and logits at their extremes", 20_000, _cases, _choosing)
