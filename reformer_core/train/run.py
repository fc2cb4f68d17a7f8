"""A training run in its folder: begun or resumed, checkpointed on the way, a Hugging Face model at the end."""

import json
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
from reformer_core.train.data import Data, Validation
from reformer_core.train.distances import plain_copy
from reformer_core.train.model_card import write_model_card
from reformer_core.train.processes import Processes, own_device
from reformer_core.train.report import Report
from reformer_core.train.settings import ModelSettings, RunSettings
from reformer_core.train.settings_file import build_settings
from reformer_core.train.sources import read_data
from reformer_core.train.trainer import Trainer, with_hyperparameters


@dataclass
class TrainingRun:
    """All that a run is made of."""

    directory: Path
    settings: RunSettings
    data: Data
    tokenizer: Tokenizer
    trainer: Trainer
    validations: Sequence[Validation]
    processes: Processes

    def execute(self, report: Report | None, stop: Callable[[], bool]) -> bool:
        """Trains until the phases are over, and saves the model; or until `stop()`, and saves a checkpoint.

        Args:
            report: what it is told to; None in all processes but the first.
            stop: asked after each step.

        Returns:
            Whether the training is finished.

        Raises:
            FloatingPointError: the training diverged.
            ConnectionError: another process has ended.
        """
        trainer, pause = self.trainer, 60 * self.settings.checkpoint.minutes
        next_checkpoint = time.monotonic() + pause
        while not trainer.progress.finished:
            result = trainer.train_step()
            if report is not None:
                report.stepped(trainer, result)
            if self.processes.largest(float(stop())):
                self._checkpoint(report)
                return False
            if report is not None and time.monotonic() >= next_checkpoint:
                self._checkpoint(report)
                report.validated(trainer, self.validate(trainer.model, self.settings.checkpoint.validation_tokens))
                next_checkpoint = time.monotonic() + pause
        self._checkpoint(report)
        if report is not None:
            self._save_model(report)
            remove_checkpoint(self.directory)
        return True

    def validate(self, model: ReformerModel, max_tokens: int | None = None) -> dict[str, float]:
        """Bits of each validation, from its first tokens or from all of it."""
        return {each.name: each.bits(model, self.trainer.precision, max_tokens) for each in self.validations}

    def _checkpoint(self, report: Report | None) -> None:
        """Writes all that `resume` needs, and the plot."""
        if report is None:
            return
        manifest = {
            "config": self.trainer.model.config.to_dict(),
            "settings": self.settings.to_dict(),
            "digests": _digests(self.data),
        }
        save_checkpoint(self.directory, {"run": manifest, "trainer": self.trainer.state_dict()})
        report.draw()

    def _save_model(self, report: Report) -> None:
        """The result, and how good it is as it is saved, rounded to its dtype."""
        rounded = plain_copy(self.trainer.model).to(DTYPES[self.settings.dtype])
        save_model(rounded, self.directory, tokenizer=self.tokenizer)
        if self.validations:
            report.message("reading the validation data in full")
        figures = self.validate(rounded.float())
        report.validated(self.trainer, figures)
        report.draw()
        write_model_card(self.directory, rounded, self.trainer, self.data, figures)


def begin(settings: RunSettings, directory: Path, processes: Processes = Processes()) -> TrainingRun:  # noqa: B008
    """A fresh run.

    Args:
        settings: all that it is told.
        directory: where the model will be; made if it isn't there.
        processes: those that train together.

    Raises:
        ValueError: data, a setting or the device can't be used, or the folder holds a model already.
        CheckpointError: the initial model or the tokenizer can't be loaded.
    """
    for name, advice in ((CHECKPOINT_FILE, "resume it"), ("config.json", "choose another folder")):
        if (directory / name).exists():
            raise ValueError(f"{directory} holds a training already ({name}): {advice}")
    data = read_data(settings.data)
    torch.manual_seed(settings.seed)
    initial = settings.model.init
    tokenizer = data.tokenizer() if initial is None or settings.data.tokenizer else load_tokenizer(initial)
    model = _model(settings.model, data, tokenizer)
    run = _assemble(settings, directory, data, tokenizer, model, processes)
    processes.largest(0.0)  # all have looked whether the folder is free
    if processes.first:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
        tokenizer.save(directory)
    return run


def resume(directory: Path, processes: Processes = Processes()) -> TrainingRun:  # noqa: B008
    """Goes on from the checkpoint in a run's folder, exactly as if it had never stopped.

    Raises:
        ValueError: there is no checkpoint, or data isn't what it was.
    """
    state = load_checkpoint(directory)
    manifest: dict[str, Any] = state["run"]
    settings = build_settings(manifest["settings"], str(directory / CHECKPOINT_FILE), Path())
    data = read_data(settings.data)
    for path, digest in _digests(data).items():
        if digest != manifest["digests"][path]:
            raise ValueError(f"{path} has changed since the training began; put the old data back, or train anew")
    model = ReformerModel(ReformerConfig.from_dict(manifest["config"]))
    if any("parametrizations" in name for name in state["trainer"]["model"]):  # as it was begun
        data.initialise(model)
    run = _assemble(settings, directory, data, load_tokenizer(directory), model, processes)
    run.trainer.load_state_dict(state["trainer"])
    return run


def _assemble(
    settings: RunSettings, directory: Path, data: Data, tokenizer: Tokenizer, model: ReformerModel, processes: Processes
) -> TrainingRun:
    model = model.to(own_device(choose_device(settings.device)))
    longest = max(max(phase.crop_lengths) for phase in settings.schedule)
    examples = data.examples(tokenizer, model.config, longest)
    return TrainingRun(
        directory=directory,
        settings=settings,
        data=data,
        tokenizer=tokenizer,
        trainer=Trainer(model, examples, settings, processes),
        validations=data.validations(tokenizer, model.config, settings.checkpoint.validation_tokens),
        processes=processes,
    )


def _model(settings: ModelSettings, data: Data, tokenizer: Tokenizer) -> ReformerModel:
    """With random weights, or those of the initial model."""
    if settings.init is not None:
        try:
            return with_hyperparameters(
                load_model(settings.init, device="cpu", dtype="float32"), settings.hyperparameters
            )
        except ValueError as error:
            raise ValueError(f"model.{error}") from error
    model = ReformerModel(_configuration(settings, data, tokenizer))
    data.initialise(model)
    return model


def _configuration(settings: ModelSettings, data: Data, tokenizer: Tokenizer) -> ReformerConfig:
    values = data.configuration(tokenizer).to_dict()
    if settings.config is not None:
        try:
            values = json.loads(settings.config.read_bytes())
            ReformerConfig.from_dict(values)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{settings.config} is no configuration of a Reformer: {error}") from error
    special = {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    try:
        return ReformerConfig.from_dict({**values, **special, **settings.hyperparameters})
    except ValueError as error:
        raise ValueError(f"model.{error}") from error


def _digests(data: Data) -> dict[str, str]:
    return {str(file.path): file.sha256 for file in (*data.files, *data.validation_files)}
