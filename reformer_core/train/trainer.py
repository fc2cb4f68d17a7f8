"""The training itself: one step at a time, and all of its state, so that it can go on exactly where it stopped."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from reformer_core.model import ReformerModel
from reformer_core.placement import cpu_multiplies_bfloat16
from reformer_core.train.data import Crops
from reformer_core.train.optimizer import build_optimizer, learning_rate_share
from reformer_core.train.settings import TrainSettings


@dataclass(frozen=True)
class StepResult:
    """What a step did."""

    loss: float  # nats a token
    tokens: int
    learning_rate: float
    seconds: float


class Trainer:
    """Trains a model on crops. Its randomness: the crops' generator, and torch's global one for dropout."""

    def __init__(self, model: ReformerModel, crops: Crops, generator: torch.Generator, settings: TrainSettings) -> None:
        """Args:
        model: with float32 weights; changed in place.
        crops: what to learn from.
        generator: the one that the crops draw from.
        settings: the rest.
        """
        self.model = model
        self.settings = settings
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0  # spent in steps, over all resumptions
        self._crops = crops
        self._generator = generator
        self._optimizer = build_optimizer(model, settings.learning_rate, settings.weight_decay)
        self.autocast = bfloat16_is_native(model.device) if settings.bfloat16 is None else settings.bfloat16

    @property
    def done(self) -> float:
        """Share of the budget that is used up."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        assert self.settings.minutes is not None
        return min(1.0, self.seconds / (60 * self.settings.minutes))

    @property
    def epochs(self) -> float:
        """How often each token of the texts was learned from, on average."""
        return self.tokens / self._crops.total_tokens

    def train_step(self) -> StepResult:
        """Learns from the next crops."""
        began = time.monotonic()
        # The middle of the step (in steps), so that neither the first nor the last is one of learning rate zero.
        done = self.done if self.settings.steps is None else (self.step + 0.5) / self.settings.steps
        rate = self.settings.learning_rate * learning_rate_share(done, self.settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        batch = self._crops.draw()
        device = self.model.device
        self.model.train()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.model.loss(
                batch.token_ids.to(device), batch.targets.to(device), batch.start_positions.to(device)
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.model.eval()
        result = StepResult(loss.item(), batch.token_ids.numel(), rate, time.monotonic() - began)
        self.step += 1
        self.tokens += result.tokens
        self.seconds += result.seconds
        return result

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "crop_generator": self._generator.get_state(),
            "global_generator": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`; torch's global generator is set as well."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self._generator.set_state(state["crop_generator"])
        torch.set_rng_state(state["global_generator"])


def bfloat16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively, many times faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_multiplies_bfloat16()
