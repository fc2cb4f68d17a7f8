"""Sinusoids in an embedding's channels: positions that tell distances, for a step is a rotation."""

import math

import torch

FASTEST = 2.8  # radians a step: below pi, so that no wave looks the same two steps on


class Waves:
    """Sinusoids of a table's rows, from fast to slow, in the last channels of the embedding: k sines, then k cosines.

    Each has a whole number of turns in the table, which positions begin again and again: its end is no gap.
    """

    def __init__(self, rows: int, width: int, waves: int, window: int) -> None:
        """Args:
        rows: of the table.
        width: d.
        waves: how many at most.
        window: tokens between which they tell distances; the slowest wave is twice as long.
        """
        self.rows, self.width = rows, width
        turns = FASTEST * (math.pi / window / FASTEST) ** torch.linspace(0, 1, waves) * rows / (2 * math.pi)
        self.frequencies = turns.round().clamp(min=1).unique().flip(0) * (2 * math.pi / rows)
        """Radians a step, [k]."""

    @property
    def channels(self) -> int:
        """2 k."""
        return 2 * len(self.frequencies)

    def table(self) -> torch.Tensor:
        """Of unit variance: float32 [rows, 2 k]."""
        angles = torch.arange(self.rows).unsqueeze(1) * self.frequencies
        return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)
