"""A whole run, as a user starts it: data in, a model directory out; interrupted, resumed, and told what is wrong."""

import json
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from reformer_core import load_model
from reformer_core.tokenizers import PixelTokenizer, load_tokenizer
from reformer_core.train.cli import train
from reformer_core.train.trainer import StepResult, Trainer
from tests.core.train.small_files import assert_same_model, write_files

QUICK = ["--set", "data.vocab_size=300", "--set", "model.config=config.json", "--set", "schedule.0.lengths=[32]"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with data and settings."""
    monkeypatch.chdir(tmp_path)
    return write_files(tmp_path)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(train, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Result:
    """A run that is told to stop by SIGTERM."""
    train_step = Trainer.train_step

    def interrupted(self: Trainer) -> StepResult:
        if self.step + 1 == steps:
            signal.raise_signal(signal.SIGTERM)
        return train_step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", interrupted)
        return invoke(*arguments)


def log(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "train.jsonl").read_text().splitlines()]


class TestTexts:
    def test_leaves_a_model_that_can_be_loaded(self, files: Path) -> None:
        output = succeed("run.toml")
        assert "data: 2,700 bytes" in output
        assert "saved the model in" in output
        directory = files / "model"
        assert {path.name for path in directory.iterdir()} == {
            "config.json",
            "model.safetensors",
            "spiece.model",
            "README.md",
            "train.jsonl",
            "train.png",
        }
        model = load_model(directory, device="cpu", dtype="float32")
        assert (model.config.vocab_size, model.config.eos_token_id, model.config.pad_token_id) == (300, 2, 0)
        assert model.config.num_hashes == 2
        assert load_tokenizer(directory).decode(load_tokenizer(directory).encode(b"fox").tolist()) == "fox"

    def test_the_card_tells_where_the_model_is_from_and_how_good_it_is(self, files: Path) -> None:
        succeed("run.toml")
        card = (files / "model" / "README.md").read_text()
        assert "# Foxes\n" in card
        assert "Licence: none, it is a pangram\n" in card
        assert "words.txt | 2,700 |" in card
        assert "Trained for 8 steps on 704 tokens" in card
        assert "| schedule.1.num_hashes | 1 |" in card
        last = log(files / "model")[-1]["validation_bits_per_byte"]
        assert isinstance(last, dict)
        assert f"held out.txt | {last['held out.txt']:.4f} |" in card
        assert str(files) not in card

    def test_the_phases_are_logged(self, files: Path) -> None:
        succeed("run.toml")
        steps = [(entry["step"], entry["tokens"], entry["phase"]) for entry in log(files / "model") if "loss" in entry]
        assert {(5, 320, 0), (8, 704, 1)} <= {*steps}
        assert (files / "model" / "train.png").read_bytes().startswith(b"\x89PNG")

    def test_texts_and_minutes_without_a_file(self, files: Path) -> None:
        output = succeed("words.txt", "--validation", "held out.txt", "--minutes", 0.01, "--output", "quick", *QUICK)
        assert "validation, bits/byte: held out.txt" in output
        assert (files / "quick" / "model.safetensors").exists()
        again = invoke("words.txt", "--minutes", 1, "--output", "quick", *QUICK)
        assert again.exit_code == 1
        assert "quick holds a training already (config.json): choose another folder" in again.output

    def test_goes_on_from_a_trained_model(self, files: Path) -> None:
        succeed("run.toml")
        arguments = ["--output", "second", "--set", "model={init = 'model', num_hashes = 4}"]
        succeed("run.toml", *arguments, "--set", "optimizer.learning_rate=1e-9")
        first, second = (load_model(files / name, device="cpu", dtype="float32") for name in ("model", "second"))
        assert second.config.num_hashes == 4
        for one, other in zip(first.parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


class TestResume:
    @pytest.mark.parametrize("steps", [3, 5, 7])
    def test_resumed_run_gives_the_same_weights(self, files: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        succeed("run.toml", "--output", "whole")
        result = stop_after(steps, monkeypatch, "run.toml")
        assert result.exit_code == 143
        assert f"stopped after step {steps}; go on with: reformer train --resume {files / 'model'}" in result.output
        assert (files / "model" / "checkpoint.pt").exists()
        monkeypatch.chdir("/")  # all that is needed lies in the folder, or is named by its whole path
        succeed("--resume", files / "model")
        assert not (files / "model" / "checkpoint.pt").exists()
        assert_same_model(files / "whole", files / "model")

    def test_changed_data_is_noticed(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stop_after(1, monkeypatch, "run.toml")
        with (files / "words.txt").open("a") as file:
            file.write("more")
        result = invoke("--resume", "model")
        assert result.exit_code == 1
        assert "words.txt has changed since" in result.output


class TestImages:
    def test_leaves_a_model_of_pixels(self, files: Path) -> None:
        output = succeed("images.toml")
        assert "bits/dimension: images.npz" in output
        model, tokenizer = load_model(files / "model", device="cpu"), load_tokenizer(files / "model")
        assert isinstance(tokenizer, PixelTokenizer)
        assert (tokenizer.height, tokenizer.width) == (4, 5)
        assert (model.config.vocab_size, model.config.axial_pos_shape) == (256, (4, 5, 3))
        assert (model.config.eos_token_id, model.config.pad_token_id) == (None, None)
        card = (files / "model" / "README.md").read_text()
        assert "bits per dimension" in card
        assert log(files / "model")[-1]["tokens"] == 3 * 3 * 60

    def test_images_of_another_size_are_told(self, files: Path) -> None:
        succeed("images.toml")
        other = ["images.toml", "--output", "other"]
        (files / "held out").mkdir()
        PixelTokenizer(3, 3).save(files / "held out")
        (files / "held out" / "a.png").write_bytes(PixelTokenizer(3, 3).to_png([0] * 27))
        result = invoke(*other, "--set", "data.validation_images=held out")
        assert "has images of 3 x 3 pixels, but those to learn from are 5 x 4; resize them" in result.output
        result = invoke(*other, "--set", "data={images = 'held out'}", "--set", "model={init = 'model'}")
        assert "the model to go on from reads images of 5 x 4 pixels, but the data are images of 3 x 3" in result.output


class TestWrongInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "what to train on?"),
            (["words.txt", "--minutes", "1"], "where to?"),
            (["words.txt", "--output", "new"], "how long? Give --minutes"),
            (["none.txt", "--minutes", "1"], "does not exist"),
            (["empty.txt", "--minutes", "1"], "empty.txt is empty"),
            (["bad.txt", "--minutes", "1"], "bad.txt: the text is not UTF-8: byte 0xff at offset 2"),
            (["words.txt", "--minutes", "1"], "no vocabulary of 1024 pieces"),
            (["words.txt", "--minutes", "1", "--set", "data.vocab_size=300"], "lengths in the schedule"),
            (["words.txt", "--minutes", "-1"], "settings: schedule.0.minutes is -1.0, but must be greater than 0"),
            (["run.toml", "words.txt"], "run.toml says what to train on"),
            (["run.toml", "--minutes", "1"], "run.toml says what to train on"),
            (["run.toml", "--set", "sed=1"], "run.toml: sed is no key that exists; did you mean seed?"),
            (["run.toml", "--set", "schedule.1.lengths=[512]"], "crops of 512 tokens are longer than the model's 256"),
            (["run.toml", "--set", "model.config=words.txt"], "words.txt is no configuration of a Reformer"),
            (["run.toml", "--set", "model.hidden_size=-1"], "model.hidden_size is -1, but must be 1 or more"),
            (["run.toml", "--set", "schedule.1.num_buckets=3"], "schedule.1.num_buckets is 3, but must be an even"),
            (["run.toml", "--set", "model={init = '/nowhere'}"], "/nowhere"),
            (["run.toml", "--set", "device=abacus"], "abacus"),
            (["images.toml", "--set", "data.images=words.txt"], "words.txt is damaged, or no .npz file"),
            (["images.toml", "--set", "model.axial_pos_shape=[4, 4, 3]"], "an image is 60 tokens, but"),
            (["words.txt", "--resume", "."], "give it alone"),
            (["--resume", "."], "no unfinished training to resume"),
        ],
    )  # fmt: skip
    def test_is_told(self, files: Path, arguments: list[str], message: str) -> None:
        (files / "empty.txt").touch()
        (files / "bad.txt").write_bytes(b"ok\xff")
        if "--resume" not in arguments and message != "where to?":
            arguments = [*arguments, "--output", "new"]
        result = invoke(*arguments)
        assert result.exit_code in (1, 2)
        assert message in " ".join(result.output.split())
        assert "Traceback" not in result.output
        assert not (files / "new").exists()
