"""The training itself: one step at a time, and all of its state, so that it can go on exactly where it stopped.

Randomness is a function of the seed and the step, whatever went on before and however many processes share the work.
"""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import nn

from reformer_core.config import ReformerConfig
from reformer_core.model import ReformerModel
from reformer_core.train.data import Batch, Examples
from reformer_core.train.optimizer import build_optimizers
from reformer_core.train.precision import choose_precision, computing_in
from reformer_core.train.processes import Processes
from reformer_core.train.schedule import Progress, learning_rate_share
from reformer_core.train.settings import Phase, RunSettings


@dataclass(frozen=True)
class StepResult:
    """What a step did."""

    loss: float  # nats a token
    tokens: int
    learning_rate: float
    seconds: float
    phase: int  # counted from 0


class Trainer:
    """Trains a model on examples. Sets torch's global random state at each step, for dropout."""

    def __init__(
        self,
        model: ReformerModel,
        examples: Examples,
        settings: RunSettings,
        processes: Processes = Processes(),  # noqa: B008  # frozen
    ) -> None:
        """Args:
        model: with float32 weights; changed in place.
        examples: what to learn from; each has a length that the phases name.
        settings: the rest.
        processes: those that share the work; each has the same model, examples and settings.

        Raises:
            ValueError: the precision isn't for this device, a phase's hyperparameters are out of their range, or its
                batches have too few examples to give each process one.
        """
        self.model = model
        self.settings = settings
        self.progress = Progress(settings.schedule)
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0  # spent in steps, over all resumptions
        self.precision = choose_precision(settings.precision, model.device)
        self.examples = examples
        self._processes = processes
        self._optimizers = build_optimizers(model, settings.optimizer)
        self._scaler = torch.amp.GradScaler(model.device.type, enabled=self.precision is torch.float16)
        self._models: list[ReformerModel] = []
        for index, phase in enumerate(settings.schedule):
            try:
                self._models.append(with_hyperparameters(model, phase.hyperparameters))
            except ValueError as error:
                raise ValueError(f"schedule.{index}.{error}") from error
            longest = max(self.lengths(phase))
            if phase.examples(longest) < processes.count:
                raise ValueError(
                    f"schedule.{index}.batch_tokens is {phase.batch_tokens:,}, but {processes.count} processes need an "
                    f"example each, of up to {longest:,} tokens: {processes.count * longest:,} at least"
                )

    @property
    def done(self) -> float:
        """Share of the training that is over."""
        return self.progress.done

    @property
    def epochs(self) -> float:
        """How often each token of the data was learned from, on average."""
        return self.tokens / self.examples.total_tokens

    def train_step(self) -> StepResult:
        """Learns from the next batch.

        Raises:
            FloatingPointError: the training diverged.
        """
        began = time.monotonic()
        phase, phase_index = self.progress.phase, self.progress.phase_index
        generator = numpy.random.default_rng((self.settings.seed, self.step))
        length = int(generator.choice(self.lengths(phase)))
        batch = self.examples.draw(generator, length, self.progress.examples(length))
        tokens = len(batch) * length
        dropout_seed = int(generator.integers(2**31))
        share = learning_rate_share(self.progress.done_amid(tokens), self.settings.optimizer)
        rate = self.settings.optimizer.learning_rate * share
        loss = self._gradients(batch, phase.accumulate, dropout_seed)
        self._update(rate, loss)
        seconds = self._processes.largest(time.monotonic() - began)
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        self.progress.advance(tokens, seconds)
        return StepResult(loss, tokens, rate, seconds, phase_index)

    def model_of(self, phase_index: int) -> ReformerModel:
        """The model under a phase's hyperparameters; the parameters are the same ones in all phases."""
        return self._models[phase_index]

    def lengths(self, phase: Phase) -> tuple[int, ...]:
        """Of the examples that a phase draws, in tokens."""
        return phase.crop_lengths if self.examples.length is None else (self.examples.length,)

    def _gradients(self, batch: Batch, accumulate: int, dropout_seed: int) -> float:
        """Sets the gradients of the batch's loss, and returns that."""
        model = self.model_of(self.progress.phase_index)
        first = self._processes.rank * accumulate
        parts = batch.parts(self._processes.count * accumulate)[first : first + accumulate]
        total = torch.zeros((), device=model.device)
        model.train()
        for index, part in enumerate(parts, first):
            if len(part):
                torch.manual_seed(dropout_seed + index)
                ids, targets, starts = (
                    each.to(model.device) for each in (part.token_ids, part.targets, part.start_positions)
                )
                with computing_in(self.precision, model.device):
                    loss = model.loss(ids, targets, starts) * (len(part) / len(batch))
                self._scaler.scale(loss).backward()
                total += loss.detach()
        model.eval()
        if self._processes.count > 1:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self._processes.add_up([total, *(each.grad for each in model.parameters() if each.grad is not None)])
        return total.item()

    def _update(self, rate: float, loss: float) -> None:
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.clip_norm)
        finite = bool(norm.isfinite())
        if not finite and self._scaler.get_scale() <= 1:
            raise FloatingPointError(
                f"step {self.step + 1} has a loss of {loss} and gradients of norm {norm.item()}: the training "
                f"diverged; choose an optimizer.learning_rate below {self.settings.optimizer.learning_rate:g}"
            )
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            if finite:  # else float16 overflowed: nobody steps, and the scale gets smaller
                optimizer.step()
            optimizer.zero_grad()
        if self._scaler.is_enabled():
            self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "scaler": self._scaler.state_dict(),
            "progress": self.progress.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self.model.load_state_dict(state["model"])
        for optimizer, own in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        if self._scaler.is_enabled() and state["scaler"]:  # the precision may be another one on another device
            self._scaler.load_state_dict(state["scaler"])
        self.progress.load_state_dict(state["progress"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def with_hyperparameters(model: ReformerModel, hyperparameters: dict[str, Any]) -> ReformerModel:
    """A model of the same parameters, not of copies, whose configuration differs in these keys.

    Raises:
        ValueError: a value is out of its range, or the parameters would have other shapes.
    """
    if not hyperparameters:
        return model
    config = dataclasses.replace(model.config, **hyperparameters)
    own, needed = _shapes(model.config), _shapes(config)
    for name in sorted(own.keys() | needed.keys()):
        if own.get(name) != needed.get(name):
            raise ValueError(
                f"{', '.join(hyperparameters)} can't be changed for weights that are there: {name} has the shape "
                f"{own.get(name)}, but would need {needed.get(name)}"
            )
    other = ReformerModel(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            other.set_submodule(name, module)  # in whatever way its weight is written
    for name, parameter in model.named_parameters():
        other.get_parameter(name).requires_grad_(parameter.requires_grad)  # loading takes that from `other`
    other.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return other.to(model.device)


def _shapes(config: ReformerConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in ReformerModel(config).named_parameters()}
