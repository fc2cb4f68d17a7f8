"""Bits of a model that knows nothing are known."""

import pytest
import torch
from torch import nn

from reformer_core.model import ReformerModel
from reformer_core.train.configurations import image_config
from reformer_core.train.validation import ImageValidation, TextValidation
from tests.core.train.small import TEXT, pixels, settings, trainer


def uniform(model: ReformerModel) -> ReformerModel:
    nn.init.zeros_(model.head.weight)
    return model


@pytest.mark.parametrize("sequence_tokens", [256, 50, 51])  # of 360: the last may be short, or of one token
def test_bits_per_byte(sequence_tokens: int) -> None:
    model = uniform(trainer(settings()).model)  # 258 tokens, a byte each: log2(258) = 8.0112
    validation = TextValidation(TEXT, sequence_tokens)
    assert validation.name == "words.txt"
    assert validation.bits(model) == pytest.approx(8.0112, abs=1e-3)
    assert validation.bits(model, torch.bfloat16, max_tokens=50) == pytest.approx(8.0112, abs=1e-2)


def test_bits_per_dimension() -> None:
    model = uniform(ReformerModel(image_config(4, 5)))
    validation = ImageValidation("images.npz", torch.from_numpy(pixels(10)).flatten(1))
    assert validation.bits(model) == pytest.approx(8.0, abs=1e-3)
    assert validation.bits(model, max_tokens=120) == pytest.approx(8.0, abs=1e-3)


def test_the_first_sequences_alone() -> None:
    model, validation = trainer(settings()).model, TextValidation(TEXT, 64)
    assert validation.bits(model, max_tokens=64) == validation.bits(model, max_tokens=1)
    assert validation.bits(model, max_tokens=65) != validation.bits(model, max_tokens=64)
    assert validation.bits(model, max_tokens=360) == validation.bits(model)
