"""The positions that a training starts from: sinusoids instead of noise."""

import math

import torch
from torch import nn

from reformer_core.model import ReformerModel
from reformer_core.positions import AxialPositions


@torch.no_grad()
def initialise_positions(model: ReformerModel) -> None:
    """Sets the positions to sinusoids of the other embeddings' scale.

    Attention to "the token before" needs positions whose products tell their distance. Sinusoids have that from the
    first step on; random tables have to learn it, and drown the tokens at first if they are drawn with Hugging Face's
    standard deviation of 1. Of axial positions only the last axis gets them, whose steps are single tokens; the others
    begin as zero, so that a row that is hardly ever trained does no harm.
    """
    positions = model.embeddings.positions
    if isinstance(positions, AxialPositions):
        *others, last = positions.weights
        for table in others:
            nn.init.zeros_(table)
    else:
        last = positions.table
    width = last.shape[-1]
    last.copy_(sinusoids(last.numel() // width, width, std=model.config.initializer_range).view_as(last))


def sinusoids(rows: int, width: int, std: float) -> torch.Tensor:
    """Sines and cosines of wavelengths from 2 pi to 2 pi times rows, float32 [rows, width]."""
    frequencies = rows ** -(torch.arange((width + 1) // 2) / (width / 2))
    angles = torch.arange(rows).unsqueeze(1) * frequencies
    return math.sqrt(2) * std * torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width]
