"""The embedded text model in an engine, as its users have it, and generations that are timed token by token."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.harness import ROOT
from reformer_core import Document, Engine, SamplingParams, embedded_model_path, load_model, load_tokenizer
from reformer_core.events import Event, Token

NOVEL = ROOT / "examples" / "emma.txt"
TEMPERATURE = 0.8


def read_tokens(text: Path, count: int) -> torch.Tensor:
    """The text's token ids, int64 [count], repeated if it is shorter."""
    ids = load_tokenizer(embedded_model_path()).encode(text.read_bytes()).long()
    return ids.repeat(-(-count // len(ids)))[:count]


def embedded_engine(max_running: int = 64, dtype: str = "auto") -> Engine:
    """With default memory. A generation never ends by itself, so that each is as long as it was asked for."""
    model = load_model(embedded_model_path(), dtype=dtype)
    model.config = replace(model.config, eos_token_id=None)
    return Engine(model, max_running=max_running)


def token_seconds(engine: Engine, document: Document, tokens: int, seed: int = 0) -> list[float]:
    """Seconds that each of so many tokens of one stream took, to sample and to append it.

    Two more aren't counted: the first one, which opens the session, and the last one, which isn't appended.
    """
    params = SamplingParams(max_tokens=tokens + 2, temperature=TEMPERATURE, seed=seed)
    stream = engine.generate(document, torch.empty(0, dtype=torch.long), params)
    ticks = [time.perf_counter() for _ in stream][:-1]
    assert len(ticks) == tokens + 1
    return [after - before for before, after in pairwise(ticks)]


def streams_seconds(engine: Engine, documents: Sequence[Document], tokens: int) -> float:
    """Seconds in which the continuations of these documents, all together, get so many tokens each.

    They begin when each has its first token, and are cancelled afterwards. Each has a seed of its own.
    """
    received = [0] * len(documents)
    nothing = torch.empty(0, dtype=torch.long)
    requests = []
    for number, document in enumerate(documents):
        # A request begins to decode a turn after the one before it, so the first ones get more tokens.
        params = SamplingParams(max_tokens=2 * len(documents) + tokens, temperature=TEMPERATURE, seed=number)
        requests.append(engine.submit_generate(document, nothing, params, _Counter(received, number)))
    while not all(received):
        engine.step()
    before, began = list(received), time.perf_counter()
    for _ in range(tokens):
        engine.step()
    seconds = time.perf_counter() - began
    assert [after - first for first, after in zip(before, received, strict=True)] == [tokens] * len(documents)
    for request in requests:
        engine.cancel(request)
    return seconds


@dataclass
class _Counter:
    """A sink that counts its tokens in its place of a list."""

    received: list[int]
    number: int
    owner: None = None

    def ready(self) -> bool:
        return True

    def emit(self, event: Event) -> None:
        self.received[self.number] += isinstance(event, Token)
