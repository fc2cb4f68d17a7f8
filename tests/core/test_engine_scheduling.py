"""Who gets their turn: readers that sleep, long and short documents, requests that overtake; merges on the way."""

from dataclasses import replace

import pytest
import torch

from reformer_core import Document, Engine, ReformerModel, Request, SamplingParams, turns
from reformer_core.events import Finished, FinishReason, Progress
from tests.core.engines import Reader, check_idle, is_busy, run, run_until, text_model, tiny_engine
from tests.core.tiny import random_tokens

GREEDY = SamplingParams(max_tokens=50, temperature=0.0)
NOTHING = torch.empty(0, dtype=torch.long)
LONG, SHORT = 4000, 500  # tokens; a quarter of the workspace for 4096 tokens is enough for the short one


@pytest.fixture(scope="module")
def model() -> ReformerModel:
    return text_model(axial_pos_shape=(64, 64))


@pytest.fixture
def engine(model: ReformerModel) -> Engine:
    return tiny_engine(model)


@pytest.fixture
def document(engine: Engine, model: ReformerModel) -> Document:
    return engine.prefill(random_tokens(model, 300))


# -- readers


def test_sleeping_readers_slow_nobody(engine: Engine, document: Document) -> None:
    sleepy, awake = [Reader(room=3) for _ in range(3)], Reader()
    requests = [engine.submit_generate(document, NOTHING, GREEDY, reader) for reader in (*sleepy, awake)]
    run(engine, requests[-1])
    assert len(awake.ids) == 50
    assert [len(reader.ids) for reader in sleepy] == [3, 3, 3]
    assert engine.load().decode_batch_size == 1
    assert not engine.step()
    assert engine.load().decode_batch_size == 0
    for reader in sleepy:
        reader.room = None
    run(engine, *requests)
    assert [reader.ids for reader in sleepy] == [awake.ids] * 3


def test_nothing_can_be_done_while_all_readers_sleep(engine: Engine, document: Document, model: ReformerModel) -> None:
    readers = [Reader(room=0) for _ in range(3)]
    requests = [
        engine.submit_generate(document, NOTHING, GREEDY, readers[0]),
        engine.submit_score(random_tokens(model, 50), readers[1]),
        engine.submit_continuations(document, [random_tokens(model, 5)] * 2, readers[2]),
    ]
    run_until(engine, lambda: not engine.step())
    assert not engine.step()
    assert is_busy(engine)
    readers[2].room = 1
    assert engine.step()
    run_until(engine, lambda: not engine.step())
    assert len(readers[2].continuations) == 1
    for reader in readers:
        reader.room = 100
    run(engine, *requests)
    check_idle(engine, [document])


# -- long and short


def finished(requests: dict[str, Request], engine: Engine) -> list[str]:
    """The requests' names in the order in which they end."""
    order: list[str] = []
    for _ in range(5000):
        order += [name for name, request in requests.items() if request.phase == "done" and name not in order]
        if len(order) == len(requests):
            return order
        assert engine.step()
    raise AssertionError("it takes too long")


@pytest.mark.usefixtures("many_slices")
def test_those_that_read_take_turns(engine: Engine, model: ReformerModel) -> None:
    order = finished(
        {
            "long": engine.submit_prefill(random_tokens(model, 4000), Reader()),
            "middle": engine.submit_score(random_tokens(model, SHORT), Reader()),
            "short": engine.submit_prefill(random_tokens(model, 10), Reader()),
            "prompt": engine.submit_generate(None, random_tokens(model, 10), replace(GREEDY, max_tokens=1), Reader()),
        },
        engine,
    )
    assert set(order[:2]) == {"short", "prompt"}
    assert order[2:] == ["middle", "long"]


@pytest.mark.usefixtures("many_slices")
def test_decoding_goes_on_during_a_prefill(
    engine: Engine, document: Document, model: ReformerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token for each slice, if reading has no right to more."""
    monkeypatch.setattr(turns, "READ_SHARE", 0.0)
    reader, generator = Reader(), Reader()
    generation = engine.submit_generate(document, NOTHING, GREEDY, generator)
    run_until(engine, lambda: generation.phase == "decode")
    before = len(generator.ids)
    prefill = engine.submit_prefill(random_tokens(model, 1000), reader)
    for turn in range(1, 31):
        engine.step()
        assert len(generator.ids) == before + turn
    assert prefill.phase == "prefill"
    run(engine)
    assert reader.reason == FinishReason.DONE


@pytest.mark.usefixtures("many_slices")
def test_reading_goes_on_beside_a_stream(
    engine: Engine, document: Document, model: ReformerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many slices for each token, if that is reading's share; and the stream goes on as soon as nobody can read."""
    monkeypatch.setattr(turns, "READ_SHARE", 1e9)
    monkeypatch.setattr(turns, "MOST_READ_SECONDS", 1e9)
    reader, generator = Reader(room=0), Reader()
    generation = engine.submit_generate(document, NOTHING, GREEDY, generator)
    run_until(engine, lambda: generation.phase == "decode" and bool(generator.ids))
    before = len(generator.ids)
    score = engine.submit_score(random_tokens(model, 1000), reader)
    for _ in range(30):
        engine.step()
    assert len(generator.ids) <= before + 1
    assert score.phase == "prefill"
    run(engine, generation)
    assert len(generator.ids) == 50
    assert score.phase == "prefill"
    reader.room = None
    run(engine)
    assert reader.reason == FinishReason.DONE


@pytest.mark.usefixtures("many_slices")
def test_the_result_does_not_depend_on_who_took_turns(model: ReformerModel) -> None:
    token_ids = random_tokens(model, 700)
    alone = tiny_engine(model).prefill(token_ids, keep_scores=True)
    engine = tiny_engine(model)
    reader, other = Reader(), Reader()
    engine.submit_score(random_tokens(model, 900, seed=3), other)
    engine.submit_prefill(token_ids, reader, keep_scores=True)
    run(engine)
    assert alone.scores is not None
    assert reader.document.scores is not None
    assert torch.equal(reader.document.scores[1:], alone.scores[1:])
    for mine, its in zip(vars(reader.document.state()).values(), vars(alone.state()).values(), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.usefixtures("many_slices")
def test_progress(engine: Engine, model: ReformerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_core.requests.PROGRESS_SECONDS", 0)
    reader = Reader()
    run(engine, engine.submit_prefill(random_tokens(model, 1000), reader))
    told = [event for event in reader.events if isinstance(event, Progress)]
    counts, seconds = [event.processed_tokens for event in told], [event.elapsed_seconds for event in told]
    assert counts == sorted(counts)
    assert seconds == sorted(seconds)
    assert 0 <= counts[0] < counts[-1] <= 1000
    assert {event.total_tokens for event in told} == {1000}


# -- admission


def test_a_short_document_does_not_wait_for_a_long_one(model: ReformerModel) -> None:
    engine = tiny_engine(model)
    requests = [engine.submit_score(random_tokens(model, tokens), Reader()) for tokens in (LONG, LONG, SHORT)]
    engine.step()
    assert [request.phase for request in requests] == ["prefill", "waiting", "prefill"]
    run(engine, *requests)
    check_idle(engine)


def test_generation_overtakes_what_waits_for_workspace(
    engine: Engine, document: Document, model: ReformerModel
) -> None:
    requests = [engine.submit_score(random_tokens(model, LONG), Reader()) for _ in range(2)]
    generation = engine.submit_generate(document, NOTHING, GREEDY, Reader())
    engine.step()
    assert [request.phase for request in requests] == ["prefill", "waiting"]
    assert generation.phase != "waiting"
    run(engine)


def test_nobody_overtakes_what_waits_for_pages(model: ReformerModel) -> None:
    """Small ones behind it don't take them away."""
    engine = tiny_engine(model, tokens=2000, pages=80)
    document = engine.prefill(random_tokens(model, 10))
    free = engine.pool.free_pages
    half = SamplingParams(max_tokens=1900, temperature=0.0)
    first = engine.submit_generate(document, NOTHING, half, Reader(room=0))
    engine.step()
    assert engine.pool.free_pages < free
    while first.needs.pages <= engine.pool.free_pages:
        engine.submit_generate(document, NOTHING, half, Reader(room=0))
        engine.step()
    running = engine.load().running
    waiting = engine.submit_generate(document, NOTHING, half, Reader())
    small = engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=1), Reader())
    assert 0 < small.needs.pages <= engine.pool.free_pages < waiting.needs.pages
    engine.step()
    assert (waiting.phase, small.phase) == ("waiting", "waiting")
    assert engine.load().running == running
    engine.cancel(first)
    engine.step()
    assert waiting.phase != "waiting"
    engine.fail_all(ValueError())
    check_idle(engine, [document])


def test_in_order_when_all_sessions_are_taken(model: ReformerModel) -> None:
    engine = tiny_engine(model, max_running=1)
    document = engine.prefill(random_tokens(model, 100))
    requests = {
        name: engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=tokens), Reader())
        for name, tokens in (("a", 9), ("b", 3), ("c", 1))
    }
    assert finished(requests, engine) == ["a", "b", "c"]


# -- merging


@pytest.mark.usefixtures("small_tails")
@pytest.mark.parametrize("prompt_tokens", [0, 31, 32, 33, 70])
def test_merges_change_nothing_and_need_no_more_pages(prompt_tokens: int) -> None:
    """With one LSH layer each token is the full pass's. Others take every page that isn't held: merges go on."""
    model = text_model(attn_layers=("lsh",), axial_pos_shape=(8, 64))
    engine = tiny_engine(model)
    token_ids, prompt = random_tokens(model, 100), random_tokens(model, prompt_tokens, seed=2)
    document, reader = engine.prefill(token_ids), Reader()
    request = engine.submit_generate(document, prompt, replace(GREEDY, max_tokens=140), reader)
    engine.step()
    taken = engine.pool.allocate(engine.pool.free_pages)
    run(engine, request)
    engine.pool.release(taken)
    everything = torch.cat([token_ids, prompt, torch.tensor(reader.ids)])
    assert len(reader.ids) == 140
    for i in range(0, 140, 7):
        before = everything[: 100 + prompt_tokens + i]
        assert int(model(before)[-1].argmax()) == reader.ids[i]
    check_idle(engine, [document])


@pytest.mark.usefixtures("small_tails")
def test_sessions_that_merge_at_different_times(model: ReformerModel) -> None:
    """Each leaves the batch for a while and comes back; what it says isn't changed by the others."""
    engine = tiny_engine(model)
    document = engine.prefill(random_tokens(model, 200))
    prompts = [random_tokens(model, tokens, seed=tokens) for tokens in (1, 9, 17, 32, 40)]
    params = replace(GREEDY, max_tokens=80)
    alone = [[token.id for token in engine.generate(document, prompt, params)] for prompt in prompts]
    readers = [Reader() for _ in prompts]
    requests = [engine.submit_generate(document, *of) for of in zip(prompts, [params] * 5, readers, strict=True)]
    sizes = set()
    while not all(reader.over for reader in readers):
        engine.step()
        sizes.add(engine.load().decode_batch_size)
    assert [reader.ids for reader in readers] == alone
    assert len(sizes) > 2
    assert all(request.phase == "done" for request in requests)
    check_idle(engine, [document])


def test_a_merge_forgets_nothing(request: pytest.FixtureRequest) -> None:
    """Neither the tokens that the repetition penalty counts, nor the time of the first token."""
    model = text_model(attn_layers=("lsh",), axial_pos_shape=(8, 64))
    token_ids, params = random_tokens(model, 100), SamplingParams(max_tokens=100, repetition_penalty=2.0, seed=3)
    engine = tiny_engine(model)
    expected = [token.id for token in engine.generate(engine.prefill(token_ids), NOTHING, params)]
    request.getfixturevalue("small_tails")
    engine, reader = tiny_engine(model), Reader()
    run(engine, engine.submit_generate(engine.prefill(token_ids), NOTHING, params, reader))
    assert reader.ids == expected
    last = reader.events[-1]
    assert isinstance(last, Finished)
    assert last.timings.decode_seconds > last.timings.prefill_seconds


@pytest.mark.usefixtures("small_tails")
def test_up_to_the_last_position(model: ReformerModel) -> None:
    """The tail is full just when there is no position left: nothing is merged any more, for no page is held for it."""
    few = text_model(attn_layers=("lsh",), axial_pos_shape=(2, 64))
    engine = tiny_engine(few)
    document, reader = engine.prefill(random_tokens(few, 96)), Reader()
    request = engine.submit_generate(document, NOTHING, replace(GREEDY, max_tokens=100), reader)
    engine.step()
    taken = engine.pool.allocate(engine.pool.free_pages)
    run(engine, request)
    engine.pool.release(taken)
    assert (len(reader.ids), reader.reason) == (33, FinishReason.POSITIONS_EXHAUSTED)
    check_idle(engine, [document])


@pytest.mark.usefixtures("small_tails")
@pytest.mark.parametrize("turns", range(1, 12))
def test_cancelled_in_a_merge(model: ReformerModel, turns: int) -> None:
    engine = tiny_engine(model)
    document, reader = engine.prefill(random_tokens(model, 300)), Reader()
    request = engine.submit_generate(document, random_tokens(model, 32), GREEDY, reader)
    for _ in range(turns):
        engine.step()
    engine.cancel(request)
    check_idle(engine, [document])


@pytest.mark.usefixtures("small_tails")
def test_long_continuations_take_their_pages_again_and_again(model: ReformerModel) -> None:
    engine = tiny_engine(model)
    document, reader = engine.prefill(random_tokens(model, 100)), Reader()
    continuations = [random_tokens(model, tokens, seed=1) for tokens in (80, 33, 100, 1, 65)]
    request = engine.submit_continuations(document, continuations, reader)
    engine.step()
    taken = engine.pool.allocate(engine.pool.free_pages)
    run(engine, request)
    engine.pool.release(taken)
    for scores, continuation in zip(reader.continuations, continuations, strict=True):
        shortest = min(len(scores), 65)
        torch.testing.assert_close(scores[:shortest], reader.continuations[4][:shortest], rtol=0, atol=1e-4)
        assert len(scores) == len(continuation)
    check_idle(engine, [document])


@pytest.mark.usefixtures("many_slices")
def test_owners_read_in_step_however_much_each_asks_for(model: ReformerModel) -> None:
    engine = tiny_engine(model, max_running=8)
    text = random_tokens(model, model.config.max_tokens)
    many = [engine.submit_score(text, Reader(owner="many")) for _ in range(4)]
    one = Reader(owner="one")
    request = engine.submit_score(text, one)
    run_until(engine, lambda: one.over)
    others_seconds = sum(each.worked_seconds for each in many)
    longest_slice = 0.1
    assert others_seconds < 2 * request.worked_seconds + longest_slice
    run(engine)
