"""What a text model starts from: positions that tell distances, and local heads that look a fixed distance back.

Words are spelled in tokens, so a language model first learns what follows the last two, three and four. A Reformer's
positions are absolute: from random weights it takes millions of tokens to find "the token before" in them, while a
Transformer with relative positions begins there. As sinusoids they are as good ([how](distances.py)).
"""

import math

import torch
from torch import nn

from reformer_core.lsh_attention import LSHAttention
from reformer_core.model import ReformerModel
from reformer_core.positions import AxialPositions
from reformer_core.train.distances import RECENT, tell_distances
from reformer_core.train.waves import Waves

# Of the embeddings. AdamW moves a weight by about the learning rate a step, whatever its gradient: at the usual 0.02, a
# few noisy steps drown the sinusoids, and a language model then takes many times the tokens to learn the same.
EMBEDDING_STD = 0.2
MOST_WAVES = 8  # with which a head tells distances, in a third of its dimensions
OUTPUT_SHARE = 0.1  # of what blocks add at first, beside the embeddings
LSH_SHARPNESS = 2.0  # standard deviation of LSH layers' logits: their keys have length 1, so their queries need some
LOOKS = ((1, 2, 3, 4, RECENT), (1, 2, RECENT), (1, 2, RECENT, 4))


@torch.no_grad()
def initialise_text(model: ReformerModel) -> None:
    """Changes a model of random weights into what a training on texts starts from; the model is on the CPU.

    Its weights are written as `distances` says until it is saved. Of axial positions only the last axis gets sinusoids,
    whose steps are single tokens; the others are zero.
    """
    config, positions = model.config, model.embeddings.positions
    if isinstance(positions, AxialPositions):
        *others, table = positions.weights
        for other in others:
            nn.init.zeros_(other)
    else:
        table = positions.table
    rows, width = table.numel() // table.shape[-1], config.hidden_size
    room = min(table.shape[-1], width // 2) // 2, config.attention_head_size // 3
    nn.init.normal_(model.embeddings.tokens.weight, std=EMBEDDING_STD)
    for layer in model.reversible_layers:
        layer.feed_forward.outer.weight *= OUTPUT_SHARE
        layer.attention.output.weight *= OUTPUT_SHARE
        if isinstance(layer.attention, LSHAttention):
            nn.init.normal_(layer.attention.query_key.weight, std=LSH_SHARPNESS / math.sqrt(width))
        else:
            for linear in (layer.attention.query, layer.attention.key):
                nn.init.normal_(linear.weight, std=1 / math.sqrt(width))
    if min(room):  # else heads or tables are tiny, and positions random ones
        waves = Waves(rows, width, min(MOST_WAVES, *room), max(config.local_window, 2))
        table.zero_()
        table[..., -waves.channels :] = EMBEDDING_STD * waves.table().view(*table.shape[:-1], waves.channels)
        model.embeddings.tokens.weight[:, -waves.channels :] = 0
        tell_distances(model, waves, LOOKS)
