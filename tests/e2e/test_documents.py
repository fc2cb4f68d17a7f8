"""A whole novel, uploaded once and used many times; texts that are scored and continued."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import ServerProcess
from reformer_client import Client, FinishReason, NotFoundError, Progress
from reformer_client.messages import Sampling

EMMA = Path(__file__).parents[2] / "examples" / "emma.txt"
GREEDY = Sampling(temperature=0.0, max_tokens=24)

pytestmark = pytest.mark.usefixtures("all_pages_come_back")


def test_a_novel(client: Client, server: ServerProcess) -> None:
    seen: list[Progress] = []
    with client.documents.create(EMMA, document_id="emma", keep_scores=True, on_progress=seen.append) as document:
        assert document.tokens == document.content_bytes == EMMA.stat().st_size > 850_000
        assert [progress.processed_tokens for progress in seen] == sorted(p.processed_tokens for p in seen)
        assert seen[-1].total_tokens == document.tokens

        first = document.generate("\nEmma", **GREEDY).collect()
        assert first.usage.cached_tokens == document.tokens
        assert len(first.ids) == 24
        assert document.generate("\nEmma", **GREEDY).collect().ids == first.ids

        logprobs = np.asarray(document.scores().logprobs)
        assert math.isnan(logprobs[0])
        assert np.isfinite(logprobs[1:]).all()
        assert len(logprobs) == document.tokens
        assert document.scores(1000, 1010).logprobs.tolist() == logprobs[1000:1010].tolist()

        assert client.documents.create(EMMA, document_id="emma").cached
        twin = client.documents.create(EMMA, document_id="twin")
        assert twin.cached
        assert {each.id for each in client.documents.list()} == {"emma", "twin"}
        assert server.metrics()['reformer_document_cache_documents{tier="memory"}'] == 1  # one content
        twin.delete()
    with pytest.raises(NotFoundError):
        client.documents.get("emma")


def test_scoring_once_equals_scores_that_were_kept(client: Client) -> None:
    text = EMMA.read_bytes()[:20_000]
    scored = client.score(text)
    with client.documents.create(text, keep_scores=True) as document:
        kept = np.asarray(document.scores().logprobs)
    assert np.allclose(np.asarray(scored.logprobs)[1:], kept[1:], atol=1e-4)
    assert scored.total_logprob == pytest.approx(np.nansum(kept.astype(np.float64)), rel=1e-5)


def test_continuations_are_scored_as_the_whole_text_is(client: Client) -> None:
    text = EMMA.read_bytes()[:5000].decode()
    continuations = ["\nEmma", "\nMr. Knightley", "x"]
    with client.documents.create(text) as document:
        ranked = document.score_continuations(continuations)
    assert [score.index for score in ranked] == [0, 1, 2]
    for score, continuation in zip(ranked, continuations, strict=True):
        whole = np.asarray(client.score(text + continuation).logprobs)
        assert np.allclose(np.asarray(score.logprobs), whole[len(text.encode()) :], atol=1e-4)
        assert score.total_logprob == pytest.approx(sum(score.logprobs), rel=1e-5)


def test_tokens_are_as_likely_as_the_scores_say(client: Client) -> None:
    text = EMMA.read_bytes()[:3000].decode()
    generation = client.generate(text, temperature=0.0, max_tokens=20, top_logprobs=3).collect()
    ids = client.tokenize(text)
    scored = client.score([*ids, *generation.ids])
    assert np.allclose(generation.logprobs, np.asarray(scored.logprobs)[len(ids) :], atol=1e-3)
    for token in generation.tokens:
        assert len(token.top) == 3
        assert token.id == token.top[0].id
        assert token.logprob == pytest.approx(token.top[0].logprob, abs=1e-5)


def test_seed_gives_the_same_tokens(client: Client) -> None:
    sampling = Sampling(max_tokens=20, seed=5)
    same = {client.generate("once upon", **sampling).collect().ids for _ in range(3)}
    assert len(same) == 1
    other = client.generate("once upon", max_tokens=20, seed=6).collect().ids
    assert other not in same


def test_stops(client: Client) -> None:
    """A stop id is reported, but not its text; of a stop text there is nothing to be seen."""
    free = client.generate("once upon", **GREEDY).collect()
    id = free.ids[3]
    stopped = client.generate("once upon", **GREEDY, stop_ids=[id]).collect()
    assert stopped.ids == free.ids[: free.ids.index(id) + 1]
    assert stopped.finish_reason is FinishReason.STOP
    stop = free.text[3]
    stopped = client.generate("once upon", **GREEDY, stop=stop).collect()
    assert stopped.text == free.text.partition(stop)[0]
    assert stopped.finish_reason is FinishReason.STOP
