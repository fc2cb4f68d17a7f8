"""A document that comes back: bit for bit the same, taking turns, and leaving nothing behind when it can't."""

from collections import deque

import pytest
import torch

from reformer_core import Document, Engine, ReformerModel, SamplingParams
from reformer_core.errors import CancelledError, OutOfMemoryError, TooManyTokensError
from tests.core.engines import Reader, check_idle, run, run_until, text_model, tiny_engine
from tests.core.tiny import random_tokens

GREEDY = SamplingParams(max_tokens=20, temperature=0)


class Arriving:
    """A source whose pages arrive when a test says so."""

    def __init__(self, *slices: torch.Tensor) -> None:
        self.slices = deque(slices)
        self.error: Exception | None = None

    def take(self) -> torch.Tensor | None:
        if self.error is not None:
            raise self.error
        return self.slices.popleft() if self.slices else None


@pytest.fixture(params=[("local", "lsh", "local", "lsh"), ("local",), ("lsh",)], ids="-".join)
def model(request: pytest.FixtureRequest) -> ReformerModel:
    return text_model(attn_layers=request.param)


@pytest.fixture
def engine(model: ReformerModel) -> Engine:
    return tiny_engine(model)


def slices_of(document: Document, pages: int = 2) -> list[torch.Tensor]:
    return [document.read_pages(first, first + pages) for first in range(0, document.page_count, pages)]


@pytest.mark.parametrize("tokens", [1, 7, 120])
@pytest.mark.parametrize("pages", [1, 1000])
def test_the_same_bit_for_bit(model: ReformerModel, engine: Engine, tokens: int, pages: int) -> None:
    """In another engine, at other places, beside another document."""
    document = engine.prefill(random_tokens(model, tokens), keep_scores=True)
    other = tiny_engine(model)
    beside = other.prefill(random_tokens(model, 33, seed=2))
    reader = Reader()
    source = Arriving(*slices_of(document, pages))
    run(other, other.submit_restore(document.token_ids, document.scores, source, reader))
    restored = reader.document
    assert reader.kinds() == ["Started", "DocumentReady", "Finished"]
    assert torch.equal(restored.read_pages(0, restored.page_count), document.read_pages(0, document.page_count))
    assert torch.equal(restored.token_ids, document.token_ids)
    prompt = random_tokens(model, 3)
    assert list(other.generate(restored, prompt, GREEDY)) == list(engine.generate(document, prompt, GREEDY))
    restored.close()
    check_idle(other, [beside])


def test_nothing_of_others_is_in_its_pages(model: ReformerModel, engine: Engine) -> None:
    """What its last pages don't fill is zero, whatever was there before."""
    token_ids = random_tokens(model, 50)
    fresh = engine.prefill(token_ids)
    expected = fresh.read_pages(0, fresh.page_count)
    fresh.close()
    engine.pool.rows.fill_(1)
    again = engine.prefill(token_ids)
    assert torch.equal(again.read_pages(0, again.page_count), expected)


def test_others_go_on_while_pages_arrive(model: ReformerModel, engine: Engine) -> None:
    document = engine.prefill(random_tokens(model, 50))
    slices = slices_of(document)
    source, reader, writer = Arriving(), Reader(), Reader()
    request = engine.submit_restore(document.token_ids, None, source, reader)
    generation = engine.submit_generate(document, random_tokens(model, 1), GREEDY, writer)
    run_until(engine, lambda: len(writer.tokens) == 5)
    assert request.phase == "prefill"
    source.slices.extend(slices[:-1])
    run(engine, generation)
    while engine.step():
        pass
    assert request.phase == "prefill", "it ended before its last page came"
    source.slices.append(slices[-1])
    run(engine, request)
    reader.document.close()
    check_idle(engine, [document])


@pytest.mark.parametrize("how", ["error", "cancelled", "too many pages", "pages of another size"])
def test_what_goes_wrong_frees_everything(how: str) -> None:
    model = text_model()
    engine = tiny_engine(model)
    document = engine.prefill(random_tokens(model, 50))
    slices = slices_of(document)
    source, reader = Arriving(slices[0]), Reader()
    request = engine.submit_restore(document.token_ids, None, source, reader)
    engine.step()
    if how == "error":
        source.error = OSError("the disk is gone")
    elif how == "cancelled":
        engine.cancel(request)
    elif how == "too many pages":
        source.slices.extend([*slices[1:-1], torch.cat([slices[-1], slices[0]])])
    else:
        source.slices.append(slices[0][:, 1:])
    run(engine, request)
    expected = {"error": OSError, "cancelled": CancelledError}.get(how, RuntimeError)
    assert isinstance(reader.error, expected)
    check_idle(engine, [document])


def test_refused_like_a_reading(model: ReformerModel) -> None:
    engine = tiny_engine(model)
    positions = model.config.max_tokens
    with pytest.raises(TooManyTokensError):
        engine.submit_restore(torch.zeros(positions + 1, dtype=torch.int32), None, Arriving(), Reader())
    document = engine.prefill(random_tokens(model, positions))
    documents = [document]
    while document.page_count <= engine.pool.free_pages:
        documents.append(engine.prefill(random_tokens(model, positions)))
    with pytest.raises(OutOfMemoryError) as refused:
        engine.submit_restore(document.token_ids, None, Arriving(), Reader())
    assert refused.value.needed_bytes == document.page_count * engine.pool.layout.page_bytes
    check_idle(engine, documents)
