"""Local heads that tell how far back a token is, for as long as a text model is trained.

A Reformer's positions are absolute, and added to the embedding only. As sinusoids in channels of their own, they give
local attention what relative positions are: of two waves in a head's query and key, the product is one of the distance.
So a head's logits can be

    content · content + sum over waves of a cos(w Δ) + b sin(w Δ),  Δ: steps back,

with an a and a b of its own for each wave. Trained as any other weights, this is lost: what layers add to the stream
covers the waves, Muon moves all directions of a matrix alike, and from the third layer on heads look at their whole
window evenly. So here nothing is added to the channels of the waves, contents are compared in dimensions of their own,
and a and b are parameters, AdamW's. It is only a way to write weights: after the training they are plain ones.

Shapes: H heads, D head size, d width; k waves in the last 2 k channels, and in the last 2 k dimensions of a head.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from reformer_core.local_attention import LocalAttention
from reformer_core.model import ReformerModel
from reformer_core.train.waves import Waves

AMPLITUDE = 8.0  # of a wave in the logits, for a parameter of 1: AdamW moves that by the learning rate a step
LOOK_AMPLITUDE = 1.5  # of each wave, for a head that looks somewhere: at its place they add up

RECENT = None
Look = int | None
"""Where a head looks at first: so many steps back, or at dozens of tokens, the more the nearer (RECENT)."""


@torch.no_grad()
def tell_distances(model: ReformerModel, waves: Waves, looks: Sequence[Sequence[Look]]) -> None:
    """Writes the model's weights as described above, in place; `plain_copy` is the way back.

    Of local heads' queries and keys it keeps what they read of contents. Positions aren't trained any more.

    Args:
        waves: in the model's embedding.
        looks: where heads look at first, by local layer; the last ones are those of all later layers, too. Heads that
            are left over are told nothing by distances.
    """
    model.embeddings.positions.requires_grad_(False)
    heads, size = model.config.num_attention_heads, model.config.attention_head_size
    local_layers = 0
    for number, layer in enumerate(model.reversible_layers):
        for linear in (layer.attention.output, layer.feed_forward.outer):
            for name, _ in list(linear.named_parameters()):
                parametrize.register_parametrization(linear, name, _NothingAdded(waves.channels))
        if isinstance(layer.attention, LocalAttention):
            share = 1 + number / 2  # what layers add makes waves smaller in a layer norm's output, the more the deeper
            query = _Query(heads, waves.channels)
            key = _Key(heads, waves.channels, scale=math.sqrt(size) * share**2 / 2)
            parametrize.register_parametrization(layer.attention.query, "weight", query)
            parametrize.register_parametrization(layer.attention.key, "weight", key)
            amplitudes = layer.attention.query.get_parameter("parametrizations.weight.original1")
            for head, look in zip(amplitudes, looks[min(local_layers, len(looks) - 1)], strict=False):
                head.copy_(_amplitudes(waves.frequencies, look) / (AMPLITUDE * share**2))
            local_layers += 1


@torch.no_grad()
def plain_copy(model: ReformerModel) -> ReformerModel:
    """A copy of the model whose weights are plain ones."""
    with torch.random.fork_rng(devices=[]):
        plain = ReformerModel(model.config).to(model.device, model.dtype)
    for path, module in plain.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(getattr(model.get_submodule(path), name))
    return plain


def _amplitudes(frequencies: torch.Tensor, look: Look) -> torch.Tensor:
    """a and b of each wave, [2, k], of which the sum is largest where a head looks."""
    if look is RECENT:
        slow = torch.arange(len(frequencies)) >= len(frequencies) - 3
        return LOOK_AMPLITUDE * torch.stack([slow.float(), torch.zeros_like(frequencies)])
    return LOOK_AMPLITUDE * torch.stack([(frequencies * look).cos(), (frequencies * look).sin()])


class _NothingAdded(nn.Module):
    """Rows [d - 2 k, …] of a weight or bias -> [d, …], zeros in the channels of waves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows, rows.new_zeros(self.channels, *rows.shape[1:])])

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[: len(weight) - self.channels].clone()


class _Reader(nn.Module):
    """A local projection of two parts: contents [H (D - 2 k), d - 2 k], and waves [H, 2 k, 2 k]; together [H D, d]."""

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.heads, self.channels = heads, channels

    def join(self, contents: torch.Tensor, waves: torch.Tensor) -> torch.Tensor:
        """The projection's weight."""
        contents = nn.functional.pad(contents.unflatten(0, (self.heads, -1)), (0, self.channels))
        waves = nn.functional.pad(waves, (contents.shape[-1] - self.channels, 0))
        return torch.cat([contents, waves], dim=1).flatten(0, 1)

    def contents(self, weight: torch.Tensor) -> torch.Tensor:
        """What a weight [H D, d] reads of contents."""
        of_heads: torch.Tensor = weight.unflatten(0, (self.heads, -1))
        return of_heads[:, : -self.channels, : -self.channels].flatten(0, 1).clone()


class _Key(_Reader):
    """Reads waves as they are, times a scale."""

    def __init__(self, heads: int, channels: int, scale: float) -> None:
        super().__init__(heads, channels)
        self.register_buffer("reading", scale * torch.eye(channels), persistent=False)

    def forward(self, contents: torch.Tensor) -> torch.Tensor:
        return self.join(contents, self.get_buffer("reading").expand(self.heads, -1, -1))

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return self.contents(weight)


class _Query(_Reader):
    """Reads waves turned and scaled by a and b [H, 2, k]: with the key's, a cos(w Δ) + b sin(w Δ)."""

    def forward(self, contents: torch.Tensor, amplitudes: torch.Tensor) -> torch.Tensor:
        a, b = (AMPLITUDE * amplitudes).diag_embed().unbind(1)
        reading = torch.cat([torch.cat([a, -b], dim=-1), torch.cat([b, a], dim=-1)], dim=-2)
        return self.join(contents, reading)

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.contents(weight), weight.new_zeros(self.heads, 2, self.channels // 2)
