"""Where in its phases a training is, and what that means for the learning rate."""

import math
from collections.abc import Sequence
from typing import Any

from reformer_core.train.settings import OptimizerSettings, Phase


class Progress:
    """The share of the phases that is done, counted in their unit: exact for tokens and steps."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._phases = phases
        self._unit = phases[0].unit
        self._total = sum(phase.budget for phase in phases)
        self.phase_index = 0
        self._spent = 0.0  # of the current phase; whole numbers are exact up to 2**53

    @property
    def finished(self) -> bool:
        """Whether all phases are over."""
        return self.phase_index == len(self._phases)

    @property
    def phase(self) -> Phase:
        """The current one; the last one when all are over."""
        return self._phases[min(self.phase_index, len(self._phases) - 1)]

    @property
    def done(self) -> float:
        """Share of all phases, 0 to 1."""
        return self._share(0.0)

    def examples(self, length: int) -> int:
        """How many examples of that length the next step takes: in a phase's last step no more than are needed."""
        count = self.phase.examples(length)
        if self._unit == "tokens":
            count = min(count, math.ceil((self.phase.budget - self._spent) / length))
        return count

    def done_amid(self, tokens: int) -> float:
        """Share that is done in the middle of a step of so many tokens: no step has a learning rate of zero."""
        return self._share({"tokens": tokens / 2, "steps": 0.5, "minutes": 0.0}[self._unit])

    def advance(self, tokens: int, seconds: float) -> None:
        """After a step."""
        self._spent += {"tokens": float(tokens), "steps": 1.0, "minutes": seconds / 60}[self._unit]
        if self._spent >= self.phase.budget:
            self.phase_index, self._spent = self.phase_index + 1, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"phase_index": self.phase_index, "spent": self._spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self.phase_index, self._spent = state["phase_index"], state["spent"]

    def _share(self, more: float) -> float:
        before = sum(phase.budget for phase in self._phases[: self.phase_index])
        return min(1.0, (before + self._spent + more) / self._total)


def learning_rate_share(done: float, settings: OptimizerSettings) -> float:
    """Share of the peak learning rate after the share `done` of the training: up linearly, constant, down to zero."""
    if done < settings.warmup:
        return done / settings.warmup
    left = 1 - done
    if left >= settings.decay:
        return 1.0
    share = left / settings.decay
    return share if settings.decay_shape == "linear" else 0.5 * (1 - math.cos(math.pi * share))
