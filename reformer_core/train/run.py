"""A training run in its folder: begun or resumed, checkpointed on the way, a Hugging Face model at the end."""

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reformer_core import ReformerConfig, ReformerModel, load_model, save_model
from reformer_core.placement import DTYPES, choose_device
from reformer_core.tokenizers import Tokenizer, load_tokenizer
from reformer_core.train.checkpoint import CHECKPOINT_FILE, load_checkpoint, remove_checkpoint, save_checkpoint
from reformer_core.train.data import Crops, TextFile, read_text, tokenize
from reformer_core.train.initial import initialise_positions
from reformer_core.train.model_card import write_model_card
from reformer_core.train.report import Report
from reformer_core.train.settings import TrainSettings, text_config
from reformer_core.train.trainer import Trainer
from reformer_core.train.validation import Validation
from reformer_core.train.vocabulary import learn_vocabulary

VOCAB_SIZE = 1024  # of a learned vocabulary, unless the user says another


@dataclass
class TrainingRun:
    """All that a run is made of."""

    directory: Path
    dtype: str
    tokenizer: Tokenizer
    texts: Sequence[TextFile]
    validation_texts: Sequence[TextFile]
    trainer: Trainer
    validations: Sequence[Validation]
    bytes_per_token: float

    def execute(self, report: Report, stop: Callable[[], bool]) -> bool:
        """Trains until the budget is used up, and saves the model; or until `stop()`, and saves a checkpoint.

        Returns:
            Whether the training is finished.

        Raises:
            FloatingPointError: the training diverged.
        """
        trainer = self.trainer
        pause = 60 * trainer.settings.checkpoint_minutes
        next_checkpoint = time.monotonic() + pause
        while trainer.done < 1:
            result = trainer.train_step()
            if not math.isfinite(result.loss):
                raise FloatingPointError(
                    f"the loss of step {trainer.step} is {result.loss}: the training diverged; choose a learning rate "
                    f"below {trainer.settings.learning_rate:g}"
                )
            report.stepped(trainer, result)
            if stop():
                self.save_checkpoint()
                return False
            if time.monotonic() >= next_checkpoint:
                self.save_checkpoint()
                report.validated(trainer, self.validate(trainer.model, max_sequences=1))
                next_checkpoint = time.monotonic() + pause
        self.save_checkpoint()
        self._save_model(report)
        remove_checkpoint(self.directory)
        return True

    def validate(self, model: ReformerModel, max_sequences: int | None = None) -> dict[str, float]:
        """Bits per byte of each validation text, or of its first sequences."""
        return {
            validation.text.name: validation.bits_per_byte(
                model, bfloat16=self.trainer.autocast, max_sequences=max_sequences
            )
            for validation in self.validations
        }

    def save_checkpoint(self) -> None:
        """Writes all that `resume` needs."""
        files = {"texts": self.texts, "validation_texts": self.validation_texts}
        manifest = {
            "dtype": self.dtype,
            "config": self.trainer.model.config.to_dict(),
            "settings": self.trainer.settings.to_dict(),
            **{name: [[str(text.path), text.sha256] for text in texts] for name, texts in files.items()},
        }
        save_checkpoint(self.directory, {"run": manifest, "trainer": self.trainer.state_dict()})

    def _save_model(self, report: Report) -> None:
        """The result, and how good it is as it is saved, rounded to its dtype."""
        rounded = copy.deepcopy(self.trainer.model).to(DTYPES[self.dtype])
        save_model(rounded, self.directory, tokenizer=self.tokenizer)
        report.message("reading the validation texts in full")
        figures = self.validate(rounded.float())
        report.validated(self.trainer, figures)
        write_model_card(self.directory, self.trainer, self.texts, self.validation_texts, figures, self.dtype)


def begin(
    directory: Path,
    text_paths: Sequence[Path],
    validation_paths: Sequence[Path],
    settings: TrainSettings,
    *,
    config_file: Path | None = None,
    initial_model: Path | None = None,
    tokenizer_directory: Path | None = None,
    vocab_size: int = VOCAB_SIZE,
    dtype: str = "float16",
    device: str = "auto",
) -> TrainingRun:
    """A fresh run.

    Args:
        directory: where the model will be; made if it isn't there.
        text_paths: texts to learn from.
        validation_paths: held-out texts.
        settings: the rest.
        config_file: a `config.json`; its vocab_size and special tokens are set to the tokenizer's. None: `text_config`.
        initial_model: a model directory to go on from, with its configuration and tokenizer.
        tokenizer_directory: a model directory whose tokenizer is used. None: one is learned from the texts.
        vocab_size: size of the learned one.
        dtype: of the saved weights: float16, bfloat16 or float32.
        device: "auto", "cpu", "cuda" …

    Raises:
        ValueError: a text, a setting or the device can't be used, or the folder holds a model already.
        CheckpointError: the initial model or the tokenizer can't be loaded.
    """
    for name, advice in ((CHECKPOINT_FILE, "resume it"), ("config.json", "choose another folder")):
        if (directory / name).exists():
            raise ValueError(f"{directory} holds a training already ({name}): {advice}")
    texts, validation_texts = [read_text(path) for path in text_paths], [read_text(path) for path in validation_paths]
    torch.manual_seed(settings.seed)
    tokenizer_directory = tokenizer_directory or initial_model
    if tokenizer_directory is None:
        tokenizer: Tokenizer = learn_vocabulary([text.content.decode() for text in texts], vocab_size)
    else:
        tokenizer = load_tokenizer(tokenizer_directory)
    if initial_model is not None:
        model = load_model(initial_model, device="cpu", dtype="float32")
    else:
        model = ReformerModel(_config(config_file, tokenizer))
        initialise_positions(model)
    run = _assemble(directory, model, tokenizer, texts, validation_texts, settings, dtype, device)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
    tokenizer.save(directory)
    return run


def resume(directory: Path, *, device: str = "auto") -> TrainingRun:
    """Goes on from the checkpoint in a run's folder, exactly as if it had never stopped.

    Raises:
        ValueError: there is no checkpoint, or a text isn't what it was.
    """
    state = load_checkpoint(directory)
    manifest: dict[str, Any] = state["run"]
    run = _assemble(
        directory,
        ReformerModel(ReformerConfig.from_dict(manifest["config"])),
        load_tokenizer(directory),
        _reread(manifest["texts"]),
        _reread(manifest["validation_texts"]),
        TrainSettings.from_dict(manifest["settings"]),
        manifest["dtype"],
        device,
    )
    run.trainer.load_state_dict(state["trainer"])
    return run


def _assemble(
    directory: Path,
    model: ReformerModel,
    tokenizer: Tokenizer,
    texts: Sequence[TextFile],
    validation_texts: Sequence[TextFile],
    settings: TrainSettings,
    dtype: str,
    device: str,
) -> TrainingRun:
    tokenized = [tokenize(text, tokenizer, model.config.eos_token_id) for text in texts]
    generator = torch.Generator().manual_seed(settings.seed)
    crops = Crops(tokenized, settings.crop_tokens, settings.tokens_per_step, model.config.max_tokens, generator)
    sequence_tokens = min(settings.validation_tokens, model.config.max_tokens)
    return TrainingRun(
        directory=directory,
        dtype=dtype,
        tokenizer=tokenizer,
        texts=texts,
        validation_texts=validation_texts,
        trainer=Trainer(model.to(choose_device(device)), crops, generator, settings),
        validations=[Validation(tokenize(text, tokenizer), sequence_tokens) for text in validation_texts],
        bytes_per_token=sum(t.content_bytes for t in tokenized) / sum(len(t.token_ids) for t in tokenized),
    )


def _config(config_file: Path | None, tokenizer: Tokenizer) -> ReformerConfig:
    special = {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    if config_file is None:
        return ReformerConfig.from_dict({**text_config(tokenizer.vocab_size).to_dict(), **special})
    try:
        return ReformerConfig.from_dict({**json.loads(config_file.read_bytes()), **special})
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{config_file} is no configuration of a Reformer: {error}") from error


def _reread(files: Sequence[tuple[str, str]]) -> list[TextFile]:
    texts = []
    for path, sha256 in files:
        text = read_text(Path(path))
        if text.sha256 != sha256:
            raise ValueError(f"{path} has changed since the training began; put the old text back, or train anew")
        texts.append(text)
    return texts
