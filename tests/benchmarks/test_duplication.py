"""The duplication benchmark: its task on made-up sequences, its evaluation on the model that the tests serve."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import duplication, harness
from benchmarks.contexts import lsh_layers, silenced
from benchmarks.duplication_task import (
    IGNORED,
    SEPARATOR,
    accuracy,
    begin_with_sinusoids,
    sequences,
    targets_of,
    task_config,
    with_rounds,
)
from reformer_core import ReformerModel, load_model

MODEL = Path(__file__).parents[1] / "data" / "duplication"


def held_out(rows: int, length: int, seed: int = 3) -> torch.Tensor:
    return sequences(rows, length, torch.Generator().manual_seed(seed))


def test_a_sequence_is_twice_the_same_half() -> None:
    token_ids = held_out(50, 64)
    assert torch.equal(token_ids[:, :32], token_ids[:, 32:])
    assert (token_ids[:, 0] == SEPARATOR).all()
    assert token_ids[:, 1:32].unique().tolist() == list(range(1, 128))
    assert not torch.equal(held_out(50, 64, seed=4), token_ids)


def test_only_the_second_w_is_asked_for() -> None:
    token_ids = torch.tensor([[0, 5, 6, 0, 5, 6]])
    assert targets_of(token_ids).tolist() == [[IGNORED, IGNORED, IGNORED, 5, 6, IGNORED]]


@torch.no_grad()
def test_products_of_initial_positions_tell_their_distance() -> None:
    model = ReformerModel(task_config(64, 4))
    begin_with_sinusoids(model)
    positions = model.embeddings.positions(torch.arange(64))
    products = positions @ positions.T
    for distance in (0, 1, 5):
        assert products.diagonal(distance).std() < 1e-5 * products[0, 0]
    assert products[3, 3] > products[3, 4] > products[3, 5]


def test_accuracy_counts_the_second_w_alone() -> None:
    class Copier(torch.nn.Module):
        """Right but for every fourth symbol; of what isn't asked for, everything is wrong."""

        def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
            guesses = targets_of(token_ids)
            guesses[:, ::4] = SEPARATOR
            return torch.nn.functional.one_hot(guesses.clamp(min=0), 128)

    token_ids = held_out(20, 64)
    asked = targets_of(token_ids)[0] != IGNORED
    wrong = int(asked[::4].sum())
    assert accuracy(Copier(), token_ids) == pytest.approx(1 - wrong / 31)  # type: ignore[arg-type]


def test_full_attention_is_one_chunk_and_weights_fit_any_rounds() -> None:
    model = ReformerModel(task_config(256, 4))
    token_ids = held_out(2, 256)
    outputs = [with_rounds(model, rounds)(token_ids) for rounds in (None, 1, 4)]
    assert torch.equal(outputs[2], model(token_ids))
    assert not torch.allclose(outputs[0], outputs[2])
    assert not torch.allclose(outputs[1], outputs[2])
    assert task_config(256, None).padded_length(256) <= task_config(256, None).lsh_attn_chunk_length


def test_the_served_model_is_right_with_its_rounds_and_with_twice_as_many() -> None:
    model = load_model(MODEL, dtype="float32")
    token_ids = held_out(4, model.config.max_tokens)
    assert accuracy(with_rounds(model, 8), token_ids) >= 0.99
    assert accuracy(with_rounds(model, 4), token_ids) >= 0.99


def test_without_its_lsh_layer_the_served_model_knows_nothing() -> None:
    model = load_model(MODEL, dtype="float32")
    token_ids = held_out(4, model.config.max_tokens)
    with silenced(model, list(lsh_layers(model))):
        assert accuracy(model, token_ids) < 0.05


def test_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "IMAGES", tmp_path)
    monkeypatch.setattr("sys.argv", ["duplication", "--quick", "--model", str(tmp_path / "model")])
    duplication.main()
    result = json.loads((tmp_path / "duplication_quick.json").read_text())
    table = result["accuracy_percent"]
    assert list(table) == ["LSH-1", "LSH-2", "LSH-4", "full"]
    assert all(list(row) == ["full", "LSH-8", "LSH-4", "LSH-2", "LSH-1"] for row in table.values())
    most = max(percent for row in table.values() for percent in row.values())
    assert most < 10  # four steps teach nothing; the training's own sequences would give a third
    assert (tmp_path / "duplication_quick.png").stat().st_size > 10_000
    assert load_model(tmp_path / "model").config.num_hashes == 4
    assert "(91.9)" in capsys.readouterr().out
