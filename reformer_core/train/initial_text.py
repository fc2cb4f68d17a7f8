"""What a text model starts from: positions that tell distances, and local heads that look a fixed distance back.

Words are spelled in tokens, so a language model first learns what follows the last two, three and four. A Reformer's
positions are absolute: from random weights it takes millions of tokens to find "the token before" in them, while a
Transformer with relative positions begins there. As sinusoids in channels of their own, a step is a rotation, and a
query can be made that finds the key so many steps before.

Queries of LSH layers are their keys, so whatever a token looks for, it is found by it as well: "what followed this
token, when it was read before" can't be asked, for the token that followed isn't like this one. Heads that copy the
latest token at an even position (or an odd one) give both something in common: a token at an even position, and
whatever follows such a token, carry the same copy.

Shapes: H heads, D head size, d width.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from reformer_core.local_attention import LocalAttention
from reformer_core.model import ReformerModel
from reformer_core.positions import AxialPositions

# Of the embeddings. AdamW moves a weight by about the learning rate a step, whatever its gradient: at the usual 0.02, a
# few noisy steps drown the sinusoids, and a language model then takes many times the tokens to learn the same.
EMBEDDING_STD = 0.2
POSITION_SHARE = 0.25  # of the channels
TOKEN_SHARE = 0.25  # of the tokens' standard deviation, in the channels of the positions
OUTPUT_SHARE = 0.1  # of what blocks add at first, beside the embeddings
OTHERS_SHARE = 0.3  # of the random weights, in heads that look somewhere
FASTEST = 2.8  # radians a step: below pi, so that no wave looks the same two steps on
WIDTH_SHARE = 0.6  # of the sharpness, for heads that look at many
SHARPNESS = 1.8  # of queries and keys each: the right distance gets nine tenths of the attention
LSH_SHARPNESS = 2.0  # standard deviation of LSH layers' logits: their keys have length 1, so their queries need some


@dataclass(frozen=True)
class Look:
    """Where a head looks."""

    steps: int = 0
    """Steps back."""
    parity: int = 0
    """1: at the latest even position, this one included; -1: at the latest odd one."""
    wide: bool = False
    """At the last dozens of positions, the more the nearer."""


EVEN, ODD, RECENT = Look(parity=1), Look(parity=-1), Look(wide=True)
# Layer by layer; the last line is that of all later ones, too. Heads that are left over stay random.
LOOKS = (
    (Look(1), Look(2), Look(3), Look(4), RECENT),
    (Look(1), Look(2), RECENT, EVEN, ODD),
    (Look(1), Look(2), RECENT, Look(4)),
)


class Waves:
    """Sinusoids of a table's rows in the last channels of the embedding, and the parity of rows."""

    def __init__(self, rows: int, width: int, channels: int) -> None:
        """Args:
        rows: of the table.
        width: d.
        channels: that are taken, the last ones of the width; even, 4 or more.
        """
        self.rows, self.width, self.channels = rows, width, channels
        waves = channels // 2
        slowest = 2 * math.pi / rows
        self.frequencies = FASTEST * (slowest / FASTEST) ** (torch.arange(waves) / (waves - 1))
        self.sines = width - channels + torch.arange(waves)
        self.cosines = self.sines + waves
        # The slowest wave tells little; its two channels are the row's parity and a constant.
        self.parity, self.constant = int(self.sines[-1]), int(self.cosines[-1])

    def table(self) -> torch.Tensor:
        """Of unit variance: float32 [rows, channels]."""
        rows = torch.arange(self.rows).unsqueeze(1)
        angles = rows * self.frequencies
        table = torch.cat([angles.sin(), angles.cos()], dim=1)
        first = self.width - self.channels
        table[:, self.parity - first] = 1.0 - 2.0 * (rows[:, 0] % 2)
        table[:, self.constant - first] = 1.0
        return math.sqrt(2) * table

    def reader(self, pairs: int, steps: int = 0, first: int = 0) -> torch.Tensor:
        """What reads the sinusoids of `steps` rows before, [2 pairs, d]: at most `pairs` waves from the `first` on."""
        chosen = slice(first, min(first + pairs, len(self.frequencies) - 1))
        angle, sines, cosines = self.frequencies[chosen] * steps, self.sines[chosen], self.cosines[chosen]
        pairs = len(angle)
        even, odd = 2 * torch.arange(pairs), 2 * torch.arange(pairs) + 1
        matrix = torch.zeros(2 * pairs, self.width)
        matrix[even, sines], matrix[even, cosines] = angle.cos(), -angle.sin()
        matrix[odd, cosines], matrix[odd, sines] = angle.cos(), angle.sin()
        return matrix

    def look(self, look: Look, head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key projections of a head that looks there, each [at most D, d]."""
        if look.wide:
            slow = WIDTH_SHARE * self.reader(head_size // 2, first=len(self.frequencies) // 2 - 1)
            return slow, slow
        if not look.parity:
            return self.reader(head_size // 2, look.steps), self.reader(head_size // 2)
        # Slower waves, for which one step back is almost here; all positions of the other parity drop out.
        near = self.reader(head_size // 2 - 1, first=len(self.frequencies) // 8)
        query, key = torch.zeros(1, self.width), torch.zeros(1, self.width)
        query[0, self.constant], key[0, self.parity] = 2.5, 2.5 * look.parity
        return torch.cat([near, query]), torch.cat([near, key])


@torch.no_grad()
def initialise_text(model: ReformerModel) -> None:
    """Changes a model of random weights into what a training on texts starts from; the model may be on any device.

    Of axial positions only the last axis gets sinusoids, whose steps are single tokens; the others begin as zero, so
    that a row that is hardly ever trained does no harm.
    """
    config, positions = model.config, model.embeddings.positions
    if isinstance(positions, AxialPositions):
        *others, table = positions.weights
        for other in others:
            nn.init.zeros_(other)
    else:
        table = positions.table
    rows, width = table.numel() // table.shape[-1], config.hidden_size
    channels = min(table.shape[-1], max(4, int(POSITION_SHARE * width))) // 2 * 2
    waves = Waves(rows, width, channels)
    table.zero_()
    table[..., -channels:] = EMBEDDING_STD * waves.table().view(*table.shape[:-1], channels)
    nn.init.normal_(model.embeddings.tokens.weight, std=EMBEDDING_STD)
    model.embeddings.tokens.weight[:, -channels:] *= TOKEN_SHARE

    local_layers = 0
    for layer in model.reversible_layers:
        layer.feed_forward.outer.weight *= OUTPUT_SHARE
        layer.attention.output.weight *= OUTPUT_SHARE
        if isinstance(layer.attention, LocalAttention):
            looks = LOOKS[min(local_layers, len(LOOKS) - 1)]
            for head, look in zip(range(config.num_attention_heads), looks, strict=False):
                _set_head(layer.attention, head, *waves.look(look, config.attention_head_size))
            local_layers += 1
        else:
            nn.init.normal_(layer.attention.query_key.weight, std=LSH_SHARPNESS / math.sqrt(width))


def _set_head(attention: LocalAttention, head: int, query: torch.Tensor, key: torch.Tensor) -> None:
    """One head's projections: what they read, [at most D, d], and a share of the random weights."""
    size = attention.config.attention_head_size
    for projection, reads in ((attention.query, query), (attention.key, key)):
        part = projection.weight[head * size : (head + 1) * size]
        part *= OTHERS_SHARE
        part[: len(reads)] += SHARPNESS * reads.to(part.device)
