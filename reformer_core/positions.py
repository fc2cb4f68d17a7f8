"""Position embeddings: axial ones, a table an axis, any number of axes (paper, section 5), or one plain table."""

from collections.abc import Sequence

import torch
from torch import nn


class AxialPositions(nn.Module):
    """Position p, written in the mixed base `shape`, takes one row of each axis's table; the rows are concatenated.

    A million positions thus cost two tables of a thousand rows.
    """

    def __init__(self, shape: Sequence[int], widths: Sequence[int], std: float) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.weights = nn.ParameterList()
        for axis, (rows, width) in enumerate(zip(shape, widths, strict=True)):
            table_shape = [1] * len(shape)  # kept in the checkpoint's shape, e.g. (1, rows, width)
            table_shape[axis] = rows
            self.weights.append(nn.Parameter(torch.randn(*table_shape, width) * std))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> [..., d]."""
        parts, rest = [], positions
        for rows, table in zip(
            reversed(self.shape), reversed(list(self.weights)), strict=True
        ):  # last axis runs fastest
            parts.append(nn.functional.embedding(rest % rows, table.flatten(0, -2)))
            rest = rest // rows
        return torch.cat(parts[::-1], dim=-1)


class PlainPositions(nn.Module):
    """One table of all positions."""

    def __init__(self, positions: int, width: int, std: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(positions, width) * std)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> [..., d]."""
        return nn.functional.embedding(positions, self.table)
