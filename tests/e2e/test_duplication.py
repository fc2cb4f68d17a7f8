"""The paper's duplication task through the server: of 0w0w, it is given 0w0 and has to tell the second w.

The model in tests/data/duplication was trained by `benchmarks/duplication.py`. It has one LSH layer, so a symbol that
is right was found in its buckets, half of all positions ago: nothing else in the model knows it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.duplication_task import SEPARATOR, sequences
from benchmarks.serving import ServerProcess
from reformer_client import Client
from reformer_core.checkpoint.loading import load_config

MODEL = Path(__file__).parents[1] / "data" / "duplication"
MAX_TOKENS = load_config(MODEL).max_tokens
RIGHT = 0.99


def halves(count: int) -> list[list[int]]:
    """Random 0w: the training had seed 0."""
    generator = torch.Generator().manual_seed(2)
    rows: list[list[int]] = sequences(count, MAX_TOKENS, generator)[:, : MAX_TOKENS // 2].tolist()
    return rows


def told(client: Client, half: Sequence[int]) -> tuple[int, ...]:
    """What the server says after 0w as a document, and 0 as the prompt."""
    with client.documents.create(half) as document:
        generation = document.generate([SEPARATOR], temperature=0.0, max_tokens=len(half) - 1).collect()
    assert generation.usage.cached_tokens == len(half)
    return generation.ids


def share_right(said: Sequence[int], half: Sequence[int]) -> float:
    """Of the symbols of w."""
    assert len(said) == len(half) - 1
    return sum(a == b for a, b in zip(said, half[1:], strict=True)) / len(said)


@pytest.fixture(scope="module", params=[4, 8], ids=lambda rounds: f"{rounds} rounds")
def copier(serve: Callable[..., ServerProcess], request: pytest.FixtureRequest) -> Iterator[Client]:
    """A server of the model with the rounds of its training, and with more."""
    server = serve("--model", MODEL, "--num-hashes", str(request.param), "--memory", "320MiB")
    with Client(server.address, timeout=100) as client:
        yield client


def test_the_second_w_is_found_in_the_document(copier: Client) -> None:
    shares = [share_right(told(copier, half), half) for half in halves(4)]
    assert sum(shares) / len(shares) >= RIGHT


def test_the_second_w_is_found_in_the_prompt(copier: Client) -> None:
    (half,) = halves(1)
    prompt = [*half, SEPARATOR]
    generation = copier.generate(prompt, temperature=0.0, max_tokens=len(half) - 1).collect()
    assert share_right(generation.ids, half) >= RIGHT


def test_another_order_of_the_same_symbols_is_told_in_its_own_order(copier: Client) -> None:
    (half,) = halves(1)
    shuffled = [SEPARATOR, *half[:0:-1]]
    said = told(copier, shuffled)
    assert share_right(said, shuffled) >= RIGHT
    assert share_right(said, half) < 0.1
