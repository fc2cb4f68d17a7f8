"""Bits per byte and the certainty of differences, on made-up figures whose result is known."""

import math

import pytest
import torch

from benchmarks.bits import Text, bits_of, bits_per_byte, difference, read_text
from reformer_core.embedded_model import embedded_model_path
from reformer_core.tokenizers import ByteTokenizer, load_tokenizer


def text(tokens: int, bytes_each: int) -> Text:
    return Text("made up", b"x" * tokens * bytes_each, torch.zeros(tokens), torch.full((tokens,), bytes_each))


def test_bits_per_byte_weighs_texts_by_their_bytes() -> None:
    texts = [text(10, 1), text(10, 3)]
    bits = [torch.full((10,), 2.0), torch.full((10,), 3.0)]
    assert bits_per_byte(texts, bits) == pytest.approx(50 / 40)
    assert bits_per_byte(texts, bits, (4, 6)) == pytest.approx(10 / 8)
    assert math.isnan(bits_per_byte(texts, bits, (10, 20)))


def test_a_token_that_nothing_predicts_costs_as_much_as_in_a_uniform_draw() -> None:
    assert bits_of(torch.tensor([torch.nan, -math.log(2)]), vocab_size=1024).tolist() == pytest.approx([10, 1])


def test_a_difference_that_is_the_same_everywhere_is_certain_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [text(20_000, 2), text(5_000, 2)]
    base = [4 + torch.randn(len(each.token_ids), generator=generator) for each in texts]
    constant = difference(texts, [each + 0.02 for each in base], base)
    assert [constant.bits, constant.low, constant.high] == pytest.approx([0.01] * 3, abs=1e-6)
    noise = difference(texts, [each + torch.randn(len(each), generator=generator) for each in base], base)
    assert noise.low < 0 < noise.high
    # Of 25,000 independent differences of deviation 1 over 2 bytes each: half an interval is 1.96 / 2 / sqrt(25,000).
    assert (noise.high - noise.low) / 2 == pytest.approx(1.96 / 2 / 25_000**0.5, rel=0.25)


def test_a_texts_tokens_spell_its_bytes() -> None:
    tokenizer = load_tokenizer(embedded_model_path())
    content = "It was a truth, \u2014 r\u00e9sum\u00e9 \u2603.".encode()
    found = read_text("emma", content, tokenizer)
    assert found.content == content
    assert int(found.token_bytes.sum()) == len(content)
    beginning = read_text("emma", content, tokenizer, max_tokens=3)
    assert content.startswith(beginning.content)
    assert len(beginning.token_ids) == 3
    assert read_text("bytes", content, ByteTokenizer()).token_bytes.tolist() == [1] * len(content)
