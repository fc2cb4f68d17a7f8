"""A whole run, as a user starts it: texts in, a model directory out; interrupted, resumed, and told what is wrong."""

import io
import json
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from reformer_core import load_model
from reformer_core.config import ReformerConfig
from reformer_core.tokenizers import load_tokenizer
from reformer_core.train.cli import train
from reformer_core.train.report import Report
from reformer_core.train.run import TrainingRun, begin, resume
from reformer_core.train.settings import TrainSettings
from reformer_core.train.trainer import StepResult, Trainer

CONFIG = ReformerConfig(
    attn_layers=("local", "lsh"),
    hidden_size=32,
    feed_forward_size=32,
    num_attention_heads=2,
    attention_head_size=16,
    local_attn_chunk_length=8,
    lsh_attn_chunk_length=8,
    num_buckets=8,
    axial_pos_shape=(16, 16),
    axial_pos_embds_dim=(16, 16),
    max_position_embeddings=256,
)
NEW = ["--output", "new", "--steps", "1"]
SETTINGS = TrainSettings(steps=8, tokens_per_step=64, crop_tokens=(32,), bfloat16=False)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a text, a held-out one and a configuration."""
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 60)
    (tmp_path / "held out.txt").write_text("a lazy fox quickly jumps over.\n" * 10)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return tmp_path


def start(files: Path, output: str) -> TrainingRun:
    return begin(
        files / output,
        [files / "words.txt"],
        [files / "held out.txt"],
        SETTINGS,
        config_file=files / "config.json",
        vocab_size=300,
    )


def execute(run: TrainingRun, stop_after: int = 10**9) -> bool:
    console = Console(file=io.StringIO())
    with Report(run.directory, run.bytes_per_token, console) as report:
        return run.execute(report, lambda: run.trainer.step >= stop_after)


def log(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "train.jsonl").read_text().splitlines()]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(train, [str(argument) for argument in arguments])


class TestRun:
    def test_leaves_a_model_that_can_be_loaded(self, files: Path) -> None:
        run = start(files, "model")
        assert execute(run)
        directory = files / "model"
        assert {path.name for path in directory.iterdir()} == {
            "config.json",
            "model.safetensors",
            "spiece.model",
            "README.md",
            "train.jsonl",
        }
        model = load_model(directory, device="cpu", dtype="float32")
        assert (model.config.vocab_size, model.config.eos_token_id, model.config.pad_token_id) == (300, 2, 0)
        token_ids = load_tokenizer(directory).encode(b"the lazy dog")
        expected = run.trainer.model(token_ids)
        torch.testing.assert_close(model(token_ids), expected, atol=0.01, rtol=0.01)  # saved as float16
        card = (directory / "README.md").read_text()
        assert "words.txt | 2,700 |" in card
        assert f"held out.txt | {log(directory)[-1]['validation_bits_per_byte']['held out.txt']:.4f} |" in card  # type: ignore[index]

    def test_resumed_run_gives_the_same_weights(self, files: Path) -> None:
        execute(start(files, "whole"))
        assert not execute(start(files, "parts"), stop_after=3)
        assert (files / "parts" / "checkpoint.pt").exists()
        assert execute(resume(files / "parts"))
        whole, parts = (load_model(files / name, device="cpu", dtype="float32") for name in ("whole", "parts"))
        for name, tensor in whole.state_dict().items():
            assert torch.equal(parts.state_dict()[name], tensor), name

    def test_goes_on_from_a_trained_model(self, files: Path) -> None:
        execute(start(files, "first"))
        first = load_model(files / "first", device="cpu", dtype="float32")
        run = begin(files / "second", [files / "words.txt"], [], SETTINGS, initial_model=files / "first")
        assert torch.equal(run.trainer.model.head.weight, first.head.weight)
        assert run.tokenizer.vocab_size == 300

    def test_changed_text_is_noticed(self, files: Path) -> None:
        execute(start(files, "model"), stop_after=1)
        with (files / "words.txt").open("a") as file:
            file.write("more")
        with pytest.raises(ValueError, match=r"words\.txt has changed since"):
            resume(files / "model")

    def test_divergence_is_an_error(self, files: Path) -> None:
        run = start(files, "model")
        torch.nn.init.constant_(run.trainer.model.head.bias, torch.nan)
        with pytest.raises(FloatingPointError, match=r"loss of step 1 is nan: .* below 0\.002"):
            execute(run)


class TestCommand:
    def test_trains_and_says_so(self, files: Path) -> None:
        result = invoke(
            files / "words.txt", "--validation", files / "held out.txt", "--output", files / "model",
            "--config", files / "config.json", "--vocab-size", 300, "--steps", 2, "--crop-tokens", "16,32",
            "--tokens-per-step", 32,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "training texts: 1, 2,700 bytes" in result.output
        assert "saved the model in" in result.output
        assert (files / "model" / "model.safetensors").exists()
        again = invoke(files / "words.txt", "--output", files / "model", "--steps", 2)
        assert again.exit_code == 1
        assert "holds a training already (config.json): choose another folder" in again.output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "which texts?"),
            (["words.txt"], "where to?"),
            (["none.txt", *NEW], "does not exist"),
            (["empty.txt", *NEW], "empty.txt is empty"),
            (["words.txt", "--output", "new"], "either steps or minutes"),
            (["words.txt", *NEW], "no vocabulary of 1024 pieces"),
            (["words.txt", *NEW, "--vocab-size", "300"], "asked for; give longer texts"),
            (["words.txt", *NEW, "--crop-tokens", "x"], "no comma-separated list"),
            (["bad.txt", *NEW], "bad.txt: the text is not UTF-8: byte 0xff at offset 2"),
            (["words.txt", *NEW, "--config", "bad.txt", "--vocab-size", "300"], "bad.txt is no conf"),
            (["words.txt", "--resume", "."], "give it alone"),
            (["--resume", "."], "no unfinished training to resume"),
        ],
    )  # fmt: skip
    def test_wrong_input_is_told(
        self, files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
    ) -> None:
        monkeypatch.chdir(files)
        (files / "empty.txt").touch()
        (files / "bad.txt").write_bytes(b"ok\xff")
        result = invoke(*arguments)
        assert result.exit_code in (1, 2)
        assert message in " ".join(result.output.split())
        assert "Traceback" not in result.output
        assert not (files / "new").exists()

    def test_an_interrupted_run_says_how_to_go_on(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        train_step = Trainer.train_step

        def interrupted(self: Trainer) -> StepResult:
            signal.raise_signal(signal.SIGTERM)
            return train_step(self)

        monkeypatch.setattr(Trainer, "train_step", interrupted)
        result = invoke(
            files / "words.txt", "--output", files / "model", "--config", files / "config.json", "--vocab-size", 300,
            "--steps", 2, "--crop-tokens", 32,
        )  # fmt: skip
        assert result.exit_code == 143
        assert f"stopped after step 1; go on with: reformer train --resume {files / 'model'}" in result.output
        monkeypatch.undo()
        result = invoke("--resume", files / "model")
        assert result.exit_code == 0, result.output
        assert not (files / "model" / "checkpoint.pt").exists()
