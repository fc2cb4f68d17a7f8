"""The embedded text model: it is there, small, and better than a general-purpose compressor on a book it never saw."""

import json
import math
from pathlib import Path

import torch

from reformer_core import embedded_model_path, load_model, load_tokenizer
from reformer_core.train.texts import read_text, tokenize
from reformer_core.train.validation import TextValidation

EMMA = Path(__file__).parents[3] / "examples" / "emma.txt"
XZ_BITS_PER_BYTE = 2.395  # of `xz -9` on the whole of Emma


def test_takes_at_most_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in embedded_model_path().rglob("*") if path.is_file()) <= 10_000_000


def test_has_a_million_positions_and_a_lossless_vocabulary() -> None:
    config = json.loads((embedded_model_path() / "config.json").read_text())
    assert math.prod(config["axial_pos_shape"]) == config["max_position_embeddings"] == 1 << 20
    tokenizer = load_tokenizer(embedded_model_path())
    assert tokenizer.vocab_size == config["vocab_size"] == 1024
    assert (tokenizer.pad_id, tokenizer.eos_id) == (config["pad_token_id"], config["eos_token_id"])
    text = "A line,\r\n\t  two  spaces: \u2581 \0 日本 😀\n"
    assert tokenizer.decode(tokenizer.encode(text.encode()).tolist()) == text


def test_predicts_a_book_that_it_never_saw() -> None:
    model = load_model(embedded_model_path(), device="cpu", dtype="float32")
    emma = tokenize(read_text(EMMA), load_tokenizer(embedded_model_path()))
    figure = TextValidation(emma, sequence_tokens=4096).bits(model, max_tokens=4096)
    assert figure < 0.95 * XZ_BITS_PER_BYTE


def test_predicts_at_the_end_of_its_positions_as_well() -> None:
    model = load_model(embedded_model_path(), device="cpu", dtype="float32")
    token_ids = load_tokenizer(embedded_model_path()).encode(EMMA.read_bytes()[20_000:26_000])[None, :1025]
    with torch.no_grad():
        first, last = (
            model.loss(token_ids[:, :-1], token_ids[:, 1:], torch.tensor([start])).item()
            for start in (0, model.config.max_tokens - 1024)
        )
    assert abs(first - last) < 0.15
