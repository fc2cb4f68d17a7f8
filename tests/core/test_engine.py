"""What requests give: the engine against full passes of the model, and blocking calls against scheduled ones."""

import math
from dataclasses import replace

import pytest
import torch

from reformer_core import Document, Engine, ReformerModel, SamplingParams
from reformer_core.errors import InvalidParameterError, InvalidTokensError, TooManyTokensError
from reformer_core.events import FinishReason, Progress, Started, Timings, Token
from reformer_core.tokenizers import ByteTokenizer
from tests.core.engines import Reader, check_idle, run, text_model, tiny_engine
from tests.core.tiny import last_rows, random_tokens

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)
SAMPLED = SamplingParams(max_tokens=12, temperature=0.9, top_p=0.95, seed=7)
NOTHING = torch.empty(0, dtype=torch.long)


@pytest.fixture(scope="module")
def model() -> ReformerModel:
    """One LSH layer: what it computes for appended tokens equals full passes."""
    return text_model(attn_layers=("lsh",), axial_pos_shape=(8, 64))


@pytest.fixture
def engine(model: ReformerModel) -> Engine:
    return tiny_engine(model)


def generated(engine: Engine, document: Document | None, prompt: torch.Tensor, params: SamplingParams) -> Reader:
    reader = Reader()
    run(engine, engine.submit_generate(document, prompt, params, reader))
    return reader


def greedy_by_full_passes(model: ReformerModel, token_ids: torch.Tensor, count: int) -> list[int]:
    for _ in range(count):
        token_ids = torch.cat([token_ids, model(token_ids)[-1].argmax(dim=-1, keepdim=True)])
    return token_ids[-count:].tolist()  # type: ignore[no-any-return]


# -- documents and scores


def test_a_document_with_its_scores(engine: Engine, model: ReformerModel) -> None:
    token_ids, reader = random_tokens(model, 300), Reader()
    run(engine, engine.submit_prefill(token_ids, reader, keep_scores=True))
    assert reader.kinds() == ["Started", "DocumentReady", "Finished"]
    assert reader.reason == FinishReason.DONE
    document = reader.document
    assert torch.equal(document.token_ids, token_ids.int())
    expected = model(token_ids).log_softmax(dim=-1)[:-1].gather(-1, token_ids[1:, None])[:, 0]
    assert document.scores is not None
    assert document.scores[0].isnan()
    torch.testing.assert_close(document.scores[1:], expected, rtol=0, atol=1e-4)
    assert engine.load().documents == 1
    document.close()
    check_idle(engine)


def test_a_document_without_scores(engine: Engine, model: ReformerModel) -> None:
    with_progress: list[Progress] = []
    document = engine.prefill(random_tokens(model, 300), on_progress=with_progress.append)
    assert document.scores is None
    assert with_progress[0].total_tokens == 300
    check_idle(engine, [document])


def test_a_document_keeps_its_own_tokens(engine: Engine, model: ReformerModel) -> None:
    """What the caller does to the tensor afterwards changes nothing."""
    token_ids = random_tokens(model, 30).int()
    document = engine.prefill(token_ids)
    before = token_ids.clone()
    token_ids.zero_()
    assert torch.equal(document.token_ids, before)


def test_scores_are_those_of_the_document(engine: Engine, model: ReformerModel) -> None:
    token_ids, reader = random_tokens(model, 300), Reader()
    run(engine, engine.submit_score(token_ids, reader))
    assert reader.kinds() == ["Started", "Scores", "Finished"]
    kept = engine.prefill(token_ids, keep_scores=True).scores
    assert kept is not None
    assert torch.equal(reader.scores[1:], kept[1:])
    assert torch.equal(reader.scores[1:], engine.score(token_ids)[1:])


def test_scores_come_in_pieces(engine: Engine, model: ReformerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_core.requests.SCORES_TOKENS", 100)
    token_ids, reader = random_tokens(model, 301), Reader()
    run(engine, engine.submit_score(token_ids, reader))
    starts = [getattr(event, "start", None) for event in reader.events[1:-1] if not isinstance(event, Progress)]
    assert starts == [0, 100, 200, 300]
    assert torch.equal(reader.scores[1:], engine.score(token_ids)[1:])


def test_one_token_is_a_document(engine: Engine, model: ReformerModel) -> None:
    token_ids = random_tokens(model, 1)
    document = engine.prefill(token_ids, keep_scores=True)
    assert document.scores is not None
    assert document.scores.isnan().tolist() == [True]
    assert [token.id for token in engine.generate(document, NOTHING, replace(GREEDY, max_tokens=3))] == (
        greedy_by_full_passes(model, token_ids, 3)
    )


# -- generation


@pytest.mark.parametrize("prompt_tokens", [0, 1, 9])
def test_greedy_continuation_of_a_document(engine: Engine, model: ReformerModel, prompt_tokens: int) -> None:
    token_ids, prompt = random_tokens(model, 61), random_tokens(model, prompt_tokens, seed=2)
    document = engine.prefill(token_ids)
    reader = generated(engine, document, prompt, GREEDY)
    assert reader.kinds() == ["Started", "Token", "Finished"]
    assert reader.reason == FinishReason.LENGTH
    assert reader.ids == greedy_by_full_passes(model, torch.cat([token_ids, prompt]), 12)
    document.close()
    check_idle(engine)


def test_greedy_continuation_of_a_prompt_alone(engine: Engine, model: ReformerModel) -> None:
    prompt = random_tokens(model, 40)
    reader = generated(engine, None, prompt, GREEDY)
    assert reader.ids == greedy_by_full_passes(model, prompt, 12)
    check_idle(engine)


def test_logprobs_are_the_models_own(engine: Engine, model: ReformerModel) -> None:
    """Before penalty and temperature, with as many of the most likely ones as each request wants."""
    token_ids = random_tokens(model, 40)
    document = engine.prefill(token_ids)
    params = [replace(SAMPLED, repetition_penalty=1.5, top_logprobs=top, seed=top) for top in (0, 3, 1)]
    readers = [Reader() for _ in params]
    run(engine, *(engine.submit_generate(document, NOTHING, p, r) for p, r in zip(params, readers, strict=True)))
    for reader, wanted in zip(readers, params, strict=True):
        expected = last_rows(model, torch.cat([token_ids, torch.tensor(reader.ids)])[:-1], 39).log_softmax(dim=-1)
        for token, row in zip(reader.tokens, expected, strict=True):
            assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
            top = row.topk(wanted.top_logprobs)
            assert [id for id, _ in token.top] == top.indices.tolist()
            assert [logprob for _, logprob in token.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_together_as_alone(engine: Engine, model: ReformerModel) -> None:
    """Eight sessions on two documents and on none, with different parameters and lengths."""
    documents = [engine.prefill(random_tokens(model, tokens)) for tokens in (33, 90)]
    requests = [
        (document, random_tokens(model, 3 + i, seed=i), replace(params, seed=i, max_tokens=5 + 2 * i))
        for i, (document, params) in enumerate(
            (document, params)
            for document in (*documents, None, documents[0])
            for params in (GREEDY, replace(SAMPLED, top_k=5, repetition_penalty=1.2))
        )
    ]
    alone = [generated(engine, *request).ids for request in requests]
    readers = [Reader() for _ in requests]
    run(engine, *(engine.submit_generate(*of, reader) for of, reader in zip(requests, readers, strict=True)))
    assert [reader.ids for reader in readers] == alone
    assert len(set(map(tuple, alone))) == len(alone)


def test_a_seed_gives_the_same_tokens_again(engine: Engine, model: ReformerModel) -> None:
    document = engine.prefill(random_tokens(model, 50))
    same, again, other = (generated(engine, document, NOTHING, replace(SAMPLED, seed=s)).ids for s in (1, 1, 2))
    assert same == again != other


def test_the_penalty_counts_prompt_and_continuation_but_not_the_document(engine: Engine, model: ReformerModel) -> None:
    """So strong a penalty bans what was seen."""
    token_ids = random_tokens(model, 60)
    document = engine.prefill(token_ids)
    first = greedy_by_full_passes(model, token_ids, 1)[0]
    banning = replace(GREEDY, repetition_penalty=1e30, max_tokens=100)
    reader = generated(engine, document, NOTHING, banning)
    positive = [id for token, id in zip(reader.tokens, reader.ids, strict=True) if token.logprob > -5]
    assert reader.ids[0] == first  # it may well be in the document
    assert len(set(positive)) == len(positive)
    with_prompt = torch.cat([token_ids, torch.tensor([first])])
    banned = generated(engine, document, torch.tensor([first]), replace(banning, max_tokens=1)).ids[0]
    logits = model(with_prompt)[-1]
    logits[first] = logits[first] / 1e30 if logits[first] > 0 else logits[first] * 1e30
    assert banned == int(logits.argmax())


def test_what_a_row_has_seen_is_forgotten(engine: Engine, model: ReformerModel) -> None:
    """Sessions follow each other in the same row of the table."""
    document = engine.prefill(random_tokens(model, 60))
    params = replace(SAMPLED, repetition_penalty=3.0)
    first = generated(engine, document, NOTHING, params).ids
    generated(engine, document, random_tokens(model, 30, seed=4), params)
    assert generated(engine, document, NOTHING, params).ids == first


# -- the end of a generation


def test_stop_ids_and_end_of_sequence(model: ReformerModel) -> None:
    token_ids = random_tokens(model, 60)
    ids = greedy_by_full_passes(model, token_ids, 12)
    last = next(i for i in range(3, 12) if ids[i] not in ids[:i])
    engine = tiny_engine(model)
    reader = generated(engine, engine.prefill(token_ids), NOTHING, replace(GREEDY, stop_ids=(ids[last],)))
    assert (reader.ids, reader.reason) == (ids[: last + 1], FinishReason.STOP)
    with_eos = text_model(attn_layers=("lsh",), axial_pos_shape=(8, 64), eos_token_id=ids[last])
    engine = tiny_engine(with_eos)
    reader = generated(engine, engine.prefill(token_ids), NOTHING, GREEDY)
    assert (reader.ids, reader.reason) == (ids[: last + 1], FinishReason.STOP)


def test_stop_texts(engine: Engine, model: ReformerModel) -> None:
    document = engine.prefill(random_tokens(model, 60))
    whole = generated(engine, document, NOTHING, replace(SAMPLED, max_tokens=60))
    assert whole.text == ByteTokenizer().decode(whole.ids)
    stop = whole.text[7:9]
    reader = generated(engine, document, NOTHING, replace(SAMPLED, max_tokens=60, stop=("never there", stop)))
    assert reader.reason == FinishReason.STOP
    assert reader.text == whole.text[: whole.text.index(stop)]
    assert reader.ids == whole.ids[: len(reader.ids)]


def test_without_a_tokenizer_there_is_no_text(model: ReformerModel) -> None:
    engine = Engine(model, memory_bytes=64 << 20)
    tokens = list(engine.generate(None, random_tokens(model, 5), GREEDY))
    assert {token.text for token in tokens} == {""}
    with pytest.raises(InvalidParameterError, match="stop"):
        next(engine.generate(None, random_tokens(model, 5), replace(GREEDY, stop=("x",))))


@pytest.mark.parametrize(("document_tokens", "prompt_tokens"), [(500, 4), (512, 0), (0, 510)])
def test_positions_exhausted(engine: Engine, model: ReformerModel, document_tokens: int, prompt_tokens: int) -> None:
    """The last position gives a token as well: it needn't be appended."""
    document = engine.prefill(random_tokens(model, document_tokens)) if document_tokens else None
    prompt = random_tokens(model, prompt_tokens, seed=2)
    reader = generated(engine, document, prompt, replace(GREEDY, max_tokens=100))
    assert reader.reason == FinishReason.POSITIONS_EXHAUSTED
    assert len(reader.ids) == 512 - document_tokens - prompt_tokens + 1
    exactly = generated(engine, document, prompt, replace(GREEDY, max_tokens=len(reader.ids)))
    assert (exactly.ids, exactly.reason) == (reader.ids, FinishReason.LENGTH)


def test_events_and_timings(engine: Engine, model: ReformerModel) -> None:
    document = engine.prefill(random_tokens(model, 60))
    reader = generated(engine, document, random_tokens(model, 3), GREEDY)
    assert isinstance(reader.events[0], Started)
    assert reader.events[0].queued_seconds >= 0
    timings: Timings = reader.events[-1].timings  # type: ignore[union-attr]
    assert min(timings.queued_seconds, timings.prefill_seconds, timings.decode_seconds) >= 0
    assert timings.first_token_seconds is not None
    phases = timings.queued_seconds + timings.prefill_seconds
    assert phases <= timings.first_token_seconds <= phases + timings.decode_seconds


# -- continuations


def test_continuations(engine: Engine, model: ReformerModel) -> None:
    """Their scores are those of the tokens appended, and equal full passes; one doesn't see another."""
    token_ids, reader = random_tokens(model, 90), Reader()
    document = engine.prefill(token_ids)
    continuations = [random_tokens(model, m, seed=m) for m in (1, 2, 40, 1, 17)]
    run(engine, engine.submit_continuations(document, continuations, reader))
    assert reader.kinds() == ["Started", "ContinuationScored", "Finished"]
    for continuation, scores in zip(continuations, reader.continuations, strict=True):
        with engine.open(document) as session:
            logits = torch.cat([document.state().next_logits[None], session.extend(continuation)[:-1]])
        appended = logits.log_softmax(dim=-1).gather(-1, continuation[:, None])[:, 0]
        torch.testing.assert_close(scores, appended, rtol=0, atol=1e-6)
        full = last_rows(model, torch.cat([token_ids, continuation[:-1]]), 89).log_softmax(dim=-1)
        torch.testing.assert_close(scores, full.gather(-1, continuation[:, None])[:, 0], rtol=0, atol=1e-4)
    document.close()
    check_idle(engine)


# -- open sessions


def test_an_open_session(engine: Engine, model: ReformerModel) -> None:
    token_ids, more = random_tokens(model, 90), random_tokens(model, 30, seed=2)
    document = engine.prefill(token_ids)
    with engine.open(document) as session:
        logits = torch.cat([session.extend(more[:11]), session.extend(more[11:])])
        assert session.length == 120
        with pytest.raises(InvalidTokensError):
            session.extend(torch.tensor([258]))
        with pytest.raises(TooManyTokensError):
            session.extend(random_tokens(model, 400))
        assert session.length == 120
    for i in (0, 10, 29):
        torch.testing.assert_close(logits[i], model(torch.cat([token_ids, more[: i + 1]]))[-1], rtol=0, atol=1e-4)
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.extend(more)
    document.close()
    check_idle(engine)


# -- what is refused at once


def test_refused_tokens(engine: Engine, model: ReformerModel) -> None:
    document = engine.prefill(random_tokens(model, 500))
    closed = engine.prefill(random_tokens(model, 5))
    closed.close()
    good, outside, reader = random_tokens(model, 5), torch.tensor([1, 258]), Reader()
    for token_ids in (NOTHING, outside, torch.tensor([-1]), torch.tensor([0.5]), good.view(1, 5), good[0]):
        with pytest.raises(InvalidTokensError):
            engine.submit_prefill(token_ids, reader)
        with pytest.raises(InvalidTokensError):
            engine.submit_score(token_ids, reader)
        with pytest.raises(InvalidTokensError):
            engine.submit_generate(None, token_ids, GREEDY, reader)
        with pytest.raises(InvalidTokensError):
            engine.submit_continuations(document, [good, token_ids], reader)
    with pytest.raises(InvalidTokensError):
        engine.submit_generate(document, outside, GREEDY, reader)
    with pytest.raises(InvalidTokensError, match="at least one"):
        engine.submit_continuations(document, [], reader)
    with pytest.raises(InvalidTokensError, match="closed"):
        engine.submit_generate(closed, good, GREEDY, reader)
    with pytest.raises(InvalidTokensError, match="closed"):
        engine.submit_continuations(closed, [good], reader)
    with pytest.raises(InvalidTokensError, match="closed"):
        engine.open(closed)
    with pytest.raises(InvalidParameterError, match="stop_ids"):
        engine.submit_generate(document, good, replace(GREEDY, stop_ids=(258,)), reader)
    for too_many in (
        lambda: engine.submit_prefill(random_tokens(model, 513), reader),
        lambda: engine.submit_score(random_tokens(model, 513), reader),
        lambda: engine.submit_generate(None, random_tokens(model, 513), GREEDY, reader),
        lambda: engine.submit_generate(document, random_tokens(model, 13), GREEDY, reader),
        lambda: engine.submit_continuations(document, [good, random_tokens(model, 13)], reader),
    ):
        with pytest.raises(TooManyTokensError) as caught:
            too_many()
        assert caught.value.max_tokens == 512
    assert reader.events == []
    check_idle(engine, [document])


def test_an_engine_of_the_default_size(model: ReformerModel) -> None:
    """Half of the memory that is free, which isn't touched before it is used."""
    engine = Engine(model)
    assert engine.pool.nbytes > 10 * engine.load().weights_bytes
    assert math.isfinite(engine.score(random_tokens(model, 20))[1:].sum())
    assert all(isinstance(token, Token) for token in engine.generate(None, random_tokens(model, 5), GREEDY))
