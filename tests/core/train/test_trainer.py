"""The trainer: it learns, it goes on exactly where it stopped, and a batch in parts is the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from reformer_core.train.checkpoint import load_checkpoint, save_checkpoint
from reformer_core.train.processes import Processes
from reformer_core.train.trainer import Trainer
from reformer_core.train.validation import TextValidation
from tests.core.train.small import TEXT, settings, trainer

SHORT_THEN_LONG: Any = ({"tokens": 320, "lengths": [16]}, {"tokens": 320, "lengths": [20, 32], "num_hashes": 1})

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0}


def losses(run: Trainer, steps: int = 10**9) -> list[float]:
    found = []
    while not run.progress.finished and len(found) < steps:
        found.append(run.train_step().loss)
    return found


def assert_same_weights(one: Trainer, other: Trainer, tolerance: float = 0.0) -> None:
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], tensor, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_loss_falls(kind: str) -> None:
    run = trainer(settings({"steps": 60}, optimizer={"kind": kind}))
    validation = TextValidation(TEXT, 256)
    before = validation.bits(run.model)
    found = losses(run)
    assert sum(found[-5:]) / 5 < 0.7 * found[0]
    assert validation.bits(run.model) < 0.7 * before
    assert (len(found), run.done) == (60, 1)
    assert not run.model.training


class TestResume:
    @pytest.mark.parametrize("kind", ["muon", "adamw"])
    @pytest.mark.parametrize("stop_after", [2, 5, 7])  # in the first phase, between the two, in the second
    def test_resumed_training_equals_uninterrupted(self, tmp_path: Path, stop_after: int, kind: str) -> None:
        run = settings(*SHORT_THEN_LONG, optimizer={"kind": kind})
        whole = trainer(run)
        expected = losses(whole)
        first = trainer(run)
        resumed = losses(first, stop_after)
        assert first.progress.phase_index == (0 if stop_after < 5 else 1)
        save_checkpoint(tmp_path, first.state_dict())
        torch.manual_seed(99)
        second = trainer(run)
        second.load_state_dict(load_checkpoint(tmp_path))
        resumed += losses(second)
        assert resumed == expected
        assert (second.step, second.tokens, second.done) == (whole.step, whole.tokens, 1)
        assert_same_weights(whole, second)

    def test_another_seed_is_another_training(self) -> None:
        one, other = (losses(trainer(settings(seed=seed)), 2) for seed in (0, 1))
        assert one != other


class TestParts:
    @pytest.mark.parametrize("parts", [2, 3])  # 3: parts of different sizes, of the four examples
    def test_accumulated_gradients_are_those_of_the_whole_batch(self, parts: int) -> None:
        phase = {"steps": 6, "lengths": [16]}
        whole, accumulated = (
            trainer(settings({**phase, "accumulate": count}), **WITHOUT_DROPOUT) for count in (1, parts)
        )
        torch.testing.assert_close(losses(accumulated), losses(whole), rtol=1e-5, atol=0)
        assert_same_weights(whole, accumulated, tolerance=1e-4)

    def test_each_process_needs_an_example(self) -> None:
        with pytest.raises(ValueError, match=r"schedule\.0\.batch_tokens is 64, but 3 processes .*: 96 at least"):
            trainer(settings({"steps": 1}), Processes(0, 3))


class TestPhases:
    def test_hyperparameters_of_a_phase(self) -> None:
        run = trainer(
            settings({"steps": 2}, {"steps": 2, "num_hashes": 4, "lsh_attn_chunk_length": 4, "num_buckets": 8})
        )
        first, second = run.model, run.model_of(1)
        assert first is run.model_of(0)
        assert (second.config.num_hashes, second.config.lsh_attn_chunk_length, second.config.num_buckets) == (4, 4, 8)
        assert all(one is other for one, other in zip(first.parameters(), second.parameters(), strict=True))
        losses(run)
        assert run.model.config.num_hashes == 2  # what is saved has the model's own

    def test_wrong_ones_are_told_by_their_phase(self) -> None:
        with pytest.raises(ValueError, match=r"schedule\.1\.num_buckets is 3, but must be an even number"):
            trainer(settings({"steps": 1}, {"steps": 1, "num_buckets": 3}))

    def test_a_budget_in_tokens_is_met_to_the_example(self) -> None:
        run = trainer(settings({"tokens": 100, "lengths": [16]}, {"tokens": 40, "lengths": [20]}))
        tokens = [run.train_step() for _ in range(3)]
        assert [(step.tokens, step.phase) for step in tokens] == [(64, 0), (48, 0), (40, 1)]
        assert run.progress.finished


class TestPrecision:
    def test_bfloat16_learns_too(self) -> None:
        run = trainer(settings({"steps": 30}, precision="bfloat16"))
        found = losses(run)
        assert found[-1] < 0.8 * found[0]
        assert run.model.head.weight.dtype == torch.float32

    def test_float16_is_refused_on_a_cpu(self) -> None:
        with pytest.raises(ValueError, match="precision is 'float16', which is for CUDA"):
            trainer(settings(precision="float16"))

    @pytest.fixture
    def in_float16(self, monkeypatch: pytest.MonkeyPatch) -> Trainer:
        """On a CPU all the same, by the kernel that CUDA uses, too: dropout of attention chooses it."""
        monkeypatch.setattr("reformer_core.train.trainer.choose_precision", lambda *_: torch.float16)
        return trainer(settings({"steps": 30}), lsh_attention_probs_dropout_prob=0.05)

    def test_float16_learns_with_scaled_losses(self, in_float16: Trainer, tmp_path: Path) -> None:
        found = losses(in_float16)
        assert found[-1] < 0.8 * found[0]
        assert in_float16.model.head.weight.dtype == torch.float32
        save_checkpoint(tmp_path, in_float16.state_dict())
        assert load_checkpoint(tmp_path)["scaler"]["scale"] > 1

    def test_an_overflow_in_float16_skips_the_step_and_lowers_the_scale(self, in_float16: Trainer) -> None:
        state = in_float16.state_dict()
        in_float16.load_state_dict(state | {"scaler": {**state["scaler"], "scale": 2.0**30}})
        before = in_float16.model.head.weight.clone()
        loss = in_float16.train_step().loss
        assert torch.equal(in_float16.model.head.weight, before)
        assert 0 < loss < 10
        assert in_float16.state_dict()["scaler"]["scale"] == 2.0**29

    def test_divergence_is_an_error(self) -> None:
        run = trainer(settings())
        torch.nn.init.constant_(run.model.head.bias, torch.nan)
        with pytest.raises(
            FloatingPointError, match=r"step 1 has a loss of nan .* optimizer\.learning_rate below 0\.01"
        ):
            run.train_step()
