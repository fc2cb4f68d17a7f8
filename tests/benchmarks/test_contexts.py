"""Less context: windows leave out exactly what is further away, and silenced layers add nothing."""

import pytest
import torch

from benchmarks.contexts import logits_at, lsh_layers, silenced, windowed_log_probabilities
from tests.core.tiny import random_tokens, tiny_model


@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 12, 41])
def test_each_token_has_at_least_half_a_window_before_it(tokens: int) -> None:
    """A "model" whose prediction tells how much it saw: the probability of token 0 is known at each place."""
    window = 8

    def logits(rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        assert torch.equal(positions, positions[:, :1] + torch.arange(rows.shape[1]))
        seen = torch.arange(1, rows.shape[1] + 1).expand_as(rows).float()
        return torch.stack([-seen, torch.log1p(-torch.exp(-seen))], dim=-1)

    scores = windowed_log_probabilities(logits, torch.zeros(tokens, dtype=torch.long), window, batch=3)
    assert scores[0].isnan()
    position = torch.arange(1, tokens)
    seen = -scores[1:].round()
    assert (seen >= torch.minimum(position, torch.tensor(window // 2))).all()
    assert (seen <= torch.minimum(position, torch.tensor(window))).all()


def test_a_window_as_long_as_the_text_gives_the_models_own_scores() -> None:
    model = tiny_model()
    token_ids = random_tokens(model, 40)
    scores = windowed_log_probabilities(lambda rows, at: logits_at(model, rows, at), token_ids, 40)
    expected = model(token_ids)[:-1].log_softmax(dim=-1).gather(-1, token_ids[1:, None]).squeeze(-1)
    torch.testing.assert_close(scores[1:], expected)


def test_only_the_last_tokens_matter_to_a_windowed_score() -> None:
    model = tiny_model()
    token_ids = random_tokens(model, 64)
    other = token_ids.clone()
    other[:16] = (other[:16] + 1) % model.config.vocab_size
    first, second = (
        windowed_log_probabilities(lambda rows, at: logits_at(model, rows, at), ids, 16) for ids in (token_ids, other)
    )
    torch.testing.assert_close(first[32:], second[32:], rtol=0, atol=0)
    assert not torch.allclose(first[1:16], second[1:16])
    whole, other_whole = model(token_ids), model(other)
    assert not torch.allclose(whole[32:], other_whole[32:]), "the whole text must matter, or this shows nothing"


def test_silenced_layers_add_nothing_and_come_back() -> None:
    model = tiny_model()
    token_ids = random_tokens(model, 64)
    layers = list(lsh_layers(model))
    before = model(token_ids)
    with silenced(model, layers):
        off = model(token_ids)
        with torch.no_grad():
            for layer in layers:
                model.reversible_layers[layer].attention.value.weight.mul_(100)
        torch.testing.assert_close(model(token_ids), off)
        with torch.no_grad():
            for layer in layers:
                model.reversible_layers[layer].attention.value.weight.div_(100)
    assert not torch.allclose(before, off)
    torch.testing.assert_close(model(token_ids), before)
