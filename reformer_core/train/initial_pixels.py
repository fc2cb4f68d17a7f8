"""What a picture model starts from: attention that looks at neighbouring pixels, and a head that copies what it sees.

Rows, columns, channels and intensities are numbers. As sinusoids they begin as such, and a step along an axis is a
rotation of its sinusoids: so queries can be made that find the key of the pixel to the left, the one above, or the
mirrored one. A model that starts like this continues a picture plausibly before it has learned anything, and saves the
millions of tokens that random weights take to find their neighbours.

Channels of the residual stream belong to rows, columns, colour channels, or intensities; no two share one.

Shapes: d width, H heads, D head size.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from reformer_core.local_attention import LocalAttention
from reformer_core.lsh_attention import LSHAttention
from reformer_core.model import ReformerModel
from reformer_core.positions import AxialPositions

INTENSITY_STD = 0.5  # of the embeddings, beside positions of 1: normalised together, positions must be heard
HEAD_STD = 0.06
SHARPNESS = 2.0  # of queries and keys each: neighbours are told apart, and more than the nearest one is seen
NOISE = 0.02  # in the heads that look somewhere, so that no two channels stay alike
LSH_SHARE = 0.2  # of what LSH layers see, which is far away, beside what local layers see
COLOURS = 3


@dataclass(frozen=True)
class View:
    """Where a head looks, from the token that is to be predicted."""

    rows: int = 0
    columns: int = 0
    colours: int = 1
    """1: the colour of the value that is to come; 0: that of the value before it, which the other can be told by."""
    mirrored: bool = False
    """The pixel at the same distance from the picture's other side."""


LEFT, ABOVE, MIRRORED = View(), View(rows=-1), View(mirrored=True)
FIRST_LAYER = (LEFT, ABOVE, MIRRORED, View(columns=-1, colours=0))
OTHER_LAYERS = (LEFT, View(rows=-1, colours=0), View(rows=-1, columns=1))


@dataclass(frozen=True)
class Axis:
    """Sinusoids of one axis, in the channels from `first` on: sines, then as many cosines."""

    first: int
    size: int
    """Numbers on the axis."""
    frequencies: torch.Tensor
    """Angular, a step."""

    @classmethod
    def of(cls, first: int, size: int, channels: int) -> "Axis":
        """With at most so many channels: waves from 2 pi to 2 pi times the size; for colours, of that length alone."""
        waves = channels // 2
        if size == COLOURS:
            return cls(first, size, torch.full((waves,), 2 * math.pi / COLOURS))
        return cls(first, size, size ** -(torch.arange(waves) / waves))

    @property
    def channels(self) -> int:
        return 2 * len(self.frequencies)

    def table(self) -> torch.Tensor:
        """A row a number, of unit variance: float32 [size, channels]."""
        angles = torch.arange(self.size).unsqueeze(1) * self.frequencies
        return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)

    def reader(self, width: int, step: int = 0, mirrored: bool = False) -> torch.Tensor:
        """What reads, of a token with the number p, the sinusoids of p + step: [channels, d]; or of size - 1 - p."""
        waves = len(self.frequencies)
        angle = (self.size - 1 if mirrored else step) * self.frequencies
        sign = -1.0 if mirrored else 1.0
        sine, cosine = torch.arange(waves), waves + torch.arange(waves)
        matrix = torch.zeros(2 * waves, width)
        matrix[sine, self.first + sine] = sign * angle.cos()
        matrix[sine, self.first + cosine] = angle.sin()
        matrix[cosine, self.first + sine] = -sign * angle.sin()
        matrix[cosine, self.first + cosine] = angle.cos()
        return matrix


@torch.no_grad()
def initialise_pixels(model: ReformerModel) -> None:
    """Sets all weights of a picture model but its norms and biases. Deterministic; the model may be on any device.

    Raises:
        ValueError: the positions have no three axial axes, of rows, columns and colours.
    """
    config, positions = model.config, model.embeddings.positions
    if not isinstance(positions, AxialPositions) or len(positions.shape) != 3 or positions.shape[2] != COLOURS:
        shape = list(config.axial_pos_shape) if config.axial_pos_embds else "plain"
        raise ValueError(
            f"a picture's positions have the axes [rows, columns, {COLOURS}], but axial_pos_shape is {shape}"
        )
    generator = torch.Generator("cpu").manual_seed(0)
    width, head_size = config.hidden_size, config.attention_head_size
    colour_channels = max(2, head_size // 4)
    most = ((head_size - colour_channels) // 2, (head_size - colour_channels) // 2, colour_channels)
    axes: list[Axis] = []
    free: list[int] = []  # channels that no position takes
    first = 0
    for table, size, channels, limit in zip(
        positions.weights, positions.shape, config.axial_pos_embds_dim, most, strict=True
    ):
        axis = Axis.of(first, size, min(channels // 2, limit))  # the other half is for intensities
        axes.append(axis)
        table.zero_()
        table[..., : axis.channels] = axis.table().view(*table.shape[:-1], axis.channels)
        free += range(first + axis.channels, first + channels)
        first += channels
    intensities = Axis.of(0, config.vocab_size, len(free))
    own = torch.tensor(free[: intensities.channels])
    embedding = torch.zeros(config.vocab_size, width)
    embedding[:, own] = intensities.table()
    model.embeddings.tokens.weight.copy_(INTENSITY_STD * embedding)
    model.head.weight.copy_(HEAD_STD * torch.cat([embedding, embedding], dim=1))

    views: tuple[View, ...] = FIRST_LAYER
    for layer in model.reversible_layers:
        attention, inner = layer.attention, config.num_attention_heads * head_size
        nn.init.zeros_(layer.feed_forward.outer.weight)
        layer.feed_forward.inner.weight.copy_(_random(config.feed_forward_size, width, generator))
        # Values are the intensities, mixed; what is put out is the same intensities, mixed back.
        mixed = torch.linalg.qr(torch.randn(max(inner, len(own)), max(inner, len(own)), generator=generator))[0]
        attention.value.weight.zero_()
        attention.value.weight[:, own.to(model.device)] = mixed[:inner, : len(own)].to(model.device)
        attention.output.weight.copy_(attention.value.weight.T)
        if isinstance(attention, LocalAttention):
            _look(attention, views, axes, generator)
            views = OTHER_LAYERS
        else:
            attention.output.weight.mul_(LSH_SHARE)
            _hash_columns(attention, axes, generator)


def _look(attention: LocalAttention, views: tuple[View, ...], axes: list[Axis], generator: torch.Generator) -> None:
    """A head a view, as far as there are heads; heads that are left over stay random."""
    inner, width = attention.query.weight.shape
    query, key = _random(inner, width, generator), _random(inner, width, generator)
    rows, columns, colours = axes
    for head, view in zip(range(attention.config.num_attention_heads), views, strict=False):
        looks = [
            rows.reader(width, view.rows),
            columns.reader(width, view.columns, view.mirrored),
            colours.reader(width, view.colours),
        ]
        for matrix, readers in ((query, looks), (key, [axis.reader(width) for axis in axes])):
            _set_head(matrix, head, attention.config.attention_head_size, SHARPNESS * torch.cat(readers))
    attention.query.weight.copy_(query)
    attention.key.weight.copy_(key)


def _hash_columns(attention: LSHAttention, axes: list[Axis], generator: torch.Generator) -> None:
    """Half of the heads put what is in one column, at any height, into one bucket; the others hash at random."""
    inner, width = attention.query_key.weight.shape
    query_key = _random(inner, width, generator)
    rows, columns, colours = axes
    reads = torch.cat([0.3 * rows.reader(width), columns.reader(width), colours.reader(width)])
    for head in range(attention.config.num_attention_heads // 2):
        _set_head(query_key, head, attention.config.attention_head_size, reads)
    attention.query_key.weight.copy_(query_key)


def _set_head(matrix: torch.Tensor, head: int, head_size: int, reads: torch.Tensor) -> None:
    """One head's part [D, d] of a projection [H D, d]: what it reads [at most D, d], and little noise."""
    part = matrix[head * head_size : (head + 1) * head_size]
    part *= NOISE
    part[: len(reads)] += reads


def _random(rows: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Of unit gain: [rows, d]."""
    return torch.randn(rows, width, generator=generator) / math.sqrt(width)
