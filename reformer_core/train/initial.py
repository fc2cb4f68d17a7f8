"""What a training starts from: sinusoids instead of noise, where numbers have an order."""

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
    _set_sinusoids(last, model.config.initializer_range)


@torch.no_grad()
def initialise_pixels(model: ReformerModel) -> None:
    """Sets what a picture model starts from: rows, columns, channels and intensities are numbers, and begin as such.

    Every axis of the positions gets sinusoids, for all of them are trained with each picture. So do the embeddings of
    the 256 intensities, whose products thus tell how near two are, and the head, which reads the two streams. At the
    start these are the embeddings themselves, so the untrained model says "much like the value before", and what it
    learns of one intensity goes for its neighbours.

    Raises:
        ValueError: the positions aren't axial.
    """
    positions = model.embeddings.positions
    if not isinstance(positions, AxialPositions):
        raise ValueError("axial_pos_embds is false, but a picture's positions are axial: rows, columns, channels")
    std = model.config.initializer_range
    for table in positions.weights:
        _set_sinusoids(table, std)
    tokens = model.embeddings.tokens.weight
    _set_sinusoids(tokens, std)
    # Turned at random, so that intensities and positions don't share single channels. Products stay as they are.
    generator = torch.Generator("cpu").manual_seed(0)
    width = tokens.shape[1]
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    tokens.copy_(tokens @ turn.to(tokens.device))
    model.head.weight.copy_(torch.cat([tokens, tokens], dim=1))


def sinusoids(rows: int, width: int, std: float) -> torch.Tensor:
    """Sines and cosines of wavelengths from 2 pi to 2 pi times rows, float32 [rows, width]."""
    frequencies = rows ** -(torch.arange((width + 1) // 2) / (width / 2))
    angles = torch.arange(rows).unsqueeze(1) * frequencies
    return math.sqrt(2) * std * torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width]


def _set_sinusoids(table: torch.Tensor, std: float) -> None:
    """Fills a table [..., width] of one row a number."""
    width = table.shape[-1]
    table.copy_(sinusoids(table.numel() // width, width, std).view_as(table))
