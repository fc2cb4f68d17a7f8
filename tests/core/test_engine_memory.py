"""What fits and what doesn't: documents beside each other, and an engine in its memory."""

from dataclasses import replace

import pytest
import torch

from reformer_core import Document, Engine, ReformerModel, SamplingParams
from reformer_core.errors import (
    OutOfMemoryError,
)
from reformer_core.events import FinishReason
from tests.core.engines import Reader, check_idle, run, text_model, tiny_engine
from tests.core.tiny import random_tokens

GREEDY = SamplingParams(max_tokens=200, temperature=0.0)
NOTHING = torch.empty(0, dtype=torch.long)


@pytest.fixture(scope="module")
def model() -> ReformerModel:
    return text_model(axial_pos_shape=(16, 64))


def fill(engine: Engine, tokens: int) -> list[Document]:
    """As many documents as fit, which is at least four, and not one more."""
    documents = [engine.prefill(random_tokens(engine.model, tokens)) for _ in range(4)]
    while engine.pool.free_pages >= documents[0].page_count:
        documents.append(engine.prefill(random_tokens(engine.model, tokens)))
    return documents


def test_a_document_that_does_not_fit_beside_the_others(model: ReformerModel) -> None:
    engine = tiny_engine(model, tokens=1000)
    documents = fill(engine, 1000)
    with pytest.raises(OutOfMemoryError) as caught:
        engine.prefill(random_tokens(model, 1000))
    size = engine.pool.layout.page_bytes
    error = caught.value
    assert error.fits_when_idle
    assert error.needed_bytes == documents[0].page_count * size
    assert error.free_bytes == engine.pool.free_pages * size < error.needed_bytes
    documents.pop().close()
    documents.append(engine.prefill(random_tokens(model, 1000)))
    check_idle(engine, documents)


def test_a_document_that_never_fits(model: ReformerModel) -> None:
    engine = tiny_engine(model, tokens=300)
    with pytest.raises(OutOfMemoryError) as caught:
        engine.prefill(random_tokens(model, 1000))
    assert not caught.value.fits_when_idle
    check_idle(engine)


def test_waiting_for_what_runs_rather_than_refused(model: ReformerModel) -> None:
    """Generations hold pages till their end; then there is room."""
    engine = tiny_engine(model, tokens=1000)
    few, readers = replace(GREEDY, max_tokens=5), [Reader() for _ in range(6)]
    requests = [engine.submit_generate(None, random_tokens(model, 900), few, reader) for reader in readers]
    engine.step()
    assert engine.load().waiting > 0
    run(engine, *requests)
    assert [reader.reason for reader in readers] == [FinishReason.LENGTH] * 6
    check_idle(engine)


def test_documents_to_come_are_counted(model: ReformerModel) -> None:
    """Else the last one would wait for ever, and everybody behind it."""
    engine = tiny_engine(model, tokens=1000)
    documents = fill(engine, 1000)
    for document in documents:
        document.close()
    requests = [engine.submit_prefill(random_tokens(model, 1000), Reader()) for _ in documents]
    with pytest.raises(OutOfMemoryError) as caught:
        engine.submit_prefill(random_tokens(model, 1000), Reader())
    assert caught.value.fits_when_idle
    engine.cancel(requests.pop())
    requests.append(engine.submit_prefill(random_tokens(model, 1000), Reader()))
    run(engine, *requests)
    assert engine.load().documents == len(documents)


def test_too_little_memory_for_an_engine(model: ReformerModel) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        Engine(model, memory_bytes=1 << 20)
    least = caught.value.needed_bytes
    with pytest.raises(OutOfMemoryError):
        Engine(model, memory_bytes=least - 1)
    engine = Engine(model, memory_bytes=least)
    token_ids = random_tokens(model, 1)
    assert len(list(engine.generate(engine.prefill(token_ids), NOTHING, replace(GREEDY, max_tokens=100)))) == 100
