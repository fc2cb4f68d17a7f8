"""The embedded image model: it is there, small, and predicts pictures that it never saw better than PNG does."""

import math
from pathlib import Path

import pytest
import torch

from reformer_core import Engine, PixelTokenizer, SamplingParams, embedded_model_path, load_model, load_tokenizer

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "pictures").glob("*.png"))


def test_takes_at_most_ten_megabytes() -> None:
    files = [path for path in embedded_model_path("image").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert "README.md" in {path.name for path in files}


def test_reads_pictures_of_32_by_32_pixels() -> None:
    tokenizer = load_tokenizer("embedded:image")
    assert isinstance(tokenizer, PixelTokenizer)
    assert (tokenizer.height, tokenizer.width) == (32, 32)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_needs_fewer_bits_than_the_file(file: Path) -> None:
    engine = Engine(load_model("embedded:image", device="cpu", dtype="float32"), memory_bytes=1 << 29, max_running=1)
    logprobs = engine.score(load_tokenizer("embedded:image").encode(file.read_bytes()))
    bits = 8 - float(logprobs[1:].double().sum()) / math.log(2)
    assert bits < 0.9 * 8 * file.stat().st_size


def test_continues_a_red_sign_in_red() -> None:
    """Most likely value by most likely value, for two rows below the upper half."""
    tokenizer = load_tokenizer("embedded:image")
    ids = tokenizer.encode((EXAMPLES[0].parent / "stop-sign.png").read_bytes())
    engine = Engine(load_model("embedded:image", device="cpu", dtype="float32"), memory_bytes=1 << 29)
    document = engine.prefill(ids[: 16 * 96])
    params = SamplingParams(max_tokens=2 * 96, temperature=0.0)
    drawn = torch.tensor([token.id for token in engine.generate(document, torch.empty(0, dtype=torch.long), params)])
    error = (drawn - ids[16 * 96 : 18 * 96]).abs().float().view(2, 32, 3)
    assert error.median() < 8
    assert error.mean() < 24
