"""The model as a whole: what it takes and gives, and what identifies it."""

import dataclasses
from typing import Any

import pytest
import torch

from reformer_core import ReformerModel
from reformer_core.errors import InvalidTokensError, TooManyTokensError
from tests.core.models import random_model, small_config


@pytest.fixture(scope="module")
def model() -> ReformerModel:
    return random_model(small_config())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_sequence_or_a_batch_of_any_integers(model: ReformerModel, dtype: torch.dtype) -> None:
    token_ids = (torch.arange(60) % 50).view(2, 30).to(dtype)
    with torch.no_grad():
        batch, alone = model(token_ids), model(token_ids[1])
    assert (batch.shape, batch.dtype) == ((2, 30, 50), torch.float32)
    assert alone.shape == (30, 50)
    torch.testing.assert_close(batch[1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("token_ids", "error", "message"),
    [
        (torch.zeros(0, dtype=torch.long), InvalidTokensError, "there are no tokens"),
        (torch.zeros(2, 0, dtype=torch.long), InvalidTokensError, "there are no tokens"),
        (
            torch.tensor([1, 50]),
            InvalidTokensError,
            "token id 50 at position 1 is outside the vocabulary: ids are 0 to 49",
        ),
        (torch.tensor([[1, 2], [3, -1]]), InvalidTokensError, "token id -1 at position 1 is outside"),
        (torch.tensor([1.0]), InvalidTokensError, "token ids must be integers, but are torch.float32"),
        (torch.tensor(3), InvalidTokensError, "token ids must be a sequence or a batch of sequences"),
        (torch.tensor([True]), InvalidTokensError, "token ids must be integers"),
        (
            torch.zeros(2049, dtype=torch.long),
            TooManyTokensError,
            "2,049 tokens, but the model has positions for 2,048",
        ),
    ],
)
def test_tokens_that_it_cannot_read(
    model: ReformerModel, token_ids: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model(token_ids)


def test_the_longest_sequence(model: ReformerModel) -> None:
    with torch.no_grad():
        assert model(torch.zeros(2048, dtype=torch.long)).shape == (2048, 50)


def test_parameters_are_counted(model: ReformerModel) -> None:
    assert model.num_parameters == sum(tensor.numel() for tensor in model.state_dict().values())


@pytest.mark.parametrize("values", [{"hash_seed": 4}, {"num_hashes": 3}, {"local_num_chunks_before": 2}])
def test_another_configuration_is_another_digest(model: ReformerModel, values: dict[str, Any]) -> None:
    other = ReformerModel(dataclasses.replace(model.config, **values))
    other.load_state_dict(model.state_dict())
    assert len(model.weights_digest) == 32
    assert other.weights_digest != model.weights_digest


def test_other_weights_are_another_digest() -> None:
    model = random_model(small_config())
    digests = {model.weights_digest}
    with torch.no_grad():
        model.head.bias[-1] += 1e-6
    digests.add(model.weights_digest)
    digests.add(model.bfloat16().weights_digest)
    assert len(digests) == 3
    assert random_model(small_config()).weights_digest in digests


@pytest.mark.parametrize("tokens", [1, 8, 9, 40, 129])
def test_shapes_without_values(tokens: int) -> None:
    """On meta tensors everything that looks at a value raises."""
    model = ReformerModel(small_config(num_hashes=3, num_buckets=(4, 8))).to("meta")
    streams = model._streams(
        torch.zeros(2, tokens, dtype=torch.long, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    )
    assert model.logits(torch.cat(streams, dim=-1)).shape == (2, tokens, 50)


def test_head_and_feed_forward_in_blocks_give_the_same(model: ReformerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    token_ids = torch.arange(100) % 50
    with torch.no_grad():
        expected = model(token_ids)
        monkeypatch.setattr("reformer_core.model.HEAD_BLOCK_TOKENS", 7)
        monkeypatch.setattr("reformer_core.layer_passes.BLOCK_TOKENS", 13)
        torch.testing.assert_close(model(token_ids), expected, atol=1e-5, rtol=0)
