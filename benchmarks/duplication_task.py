"""The paper's synthetic task (section 5): of a sequence 0w0w the second w has to be told, w being random symbols.

Nothing but the first w says what comes, so a model that is right has found it: at a distance of half the sequence, with
the one attention layer that it has.

Shapes: B sequences, n tokens, symbols of a w: n / 2 - 1.
"""

import math
from collections.abc import Callable

import torch

from benchmarks.contexts import lsh_layers
from reformer_core import ReformerConfig, ReformerModel
from reformer_core.hashing import draw_rotations
from reformer_core.positions import PlainPositions
from reformer_core.tokenizers import ByteTokenizer
from reformer_core.train.optimizer import build_optimizers
from reformer_core.train.schedule import learning_rate_share
from reformer_core.train.settings import OptimizerSettings

SEPARATOR = 0
SYMBOLS = 127  # ids 1 to 127
CHUNK_LENGTH = 32
IGNORED = -100  # target of what isn't asked
EVALUATION_ROWS = 8  # sequences at a time
OPTIMIZER = OptimizerSettings(learning_rate=5e-3, weight_decay=0.0)

Rounds = int | None
"""Hash rounds of the LSH layer; None: full attention, that is one chunk as long as the sequence."""


def name_of(rounds: Rounds) -> str:
    """As the paper calls it."""
    return "full" if rounds is None else f"LSH-{rounds}"


def task_config(length: int, rounds: Rounds) -> ReformerConfig:
    """The paper's model for sequences of n = length tokens: one layer, d = ff = 256, four heads.

    The vocabulary is that of bytes, of which the task uses half, so that a server needs no tokenizer file.
    """
    return ReformerConfig(
        attn_layers=("lsh",),
        hidden_size=256,
        feed_forward_size=256,
        num_attention_heads=4,
        attention_head_size=64,
        vocab_size=ByteTokenizer.vocab_size,
        eos_token_id=None,
        pad_token_id=None,
        lsh_attn_chunk_length=length if rounds is None else CHUNK_LENGTH,
        num_hashes=rounds or 1,
        num_buckets=None,  # two chunks' worth of tokens share one, as it follows from the length
        hash_seed=0,
        axial_pos_embds=False,
        max_position_embeddings=length,
        hidden_dropout_prob=0.0,
    )


@torch.no_grad()
def begin_with_sinusoids(model: ReformerModel) -> None:
    """Sets the positions to sinusoids of the tokens' scale and of wavelengths from 2 pi to 2 pi times their number.

    Their products tell distances from the first step on; random positions would have to learn that first.
    """
    positions = model.embeddings.positions
    assert isinstance(positions, PlainPositions)
    rows, width = positions.table.shape
    angles = torch.arange(rows).unsqueeze(1) * rows ** -(torch.arange(width // 2) / (width / 2))
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    positions.table.copy_(math.sqrt(2) * model.config.initializer_range * waves)


def sequences(rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Random sequences 0w0w, int64 [B, n]; n is even."""
    half = torch.randint(1, SYMBOLS + 1, (rows, length // 2), generator=generator)
    half[:, 0] = SEPARATOR
    return half.repeat(1, 2)


def targets_of(token_ids: torch.Tensor) -> torch.Tensor:
    """For each token the one after it if that is of the second w, else IGNORED: int64 [B, n]."""
    targets = token_ids.roll(-1, dims=1)
    targets[:, : token_ids.shape[1] // 2] = IGNORED
    targets[:, -1] = IGNORED
    return targets


def train(
    length: int, rounds: Rounds, *, steps: int, rows: int, on_step: Callable[[int, float], None], seed: int = 0
) -> ReformerModel:
    """A model that was trained in so many steps on B = rows new sequences each.

    `on_step` is told each step's number, from 1 on, and its loss in nats a symbol of the second w.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ReformerModel(task_config(length, rounds))
    begin_with_sinusoids(model)
    optimizers = build_optimizers(model, OPTIMIZER)
    generator = torch.Generator().manual_seed(seed)
    (attention,) = lsh_layers(model).values()
    heads, head_size, hash_rounds, _ = attention.rotations.shape
    starts = torch.zeros(rows, dtype=torch.long)
    for step in range(steps):
        share = learning_rate_share((step + 0.5) / steps, OPTIMIZER)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = OPTIMIZER.learning_rate * share
        # Each step has hash rotations of its own, as in the published code's training: with others than it is evaluated
        # with, so that the model learns to hash well, not to suit one draw. An evaluation's seed is 0.
        attention.rotations = draw_rotations(1 + step, heads, head_size, hash_rounds, model.config.bucket_factors)
        token_ids = sequences(rows, length, generator)
        model.train()
        loss = model.loss(token_ids, targets_of(token_ids), starts)
        model.eval()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        on_step(step + 1, loss.item())
    return with_rounds(model, rounds)  # with the rotations of its configuration again


def with_rounds(model: ReformerModel, rounds: Rounds) -> ReformerModel:
    """The same weights with other attention."""
    other = ReformerModel(task_config(model.config.max_tokens, rounds))
    other.load_state_dict(model.state_dict())
    return other


@torch.no_grad()
def accuracy(model: ReformerModel, token_ids: torch.Tensor) -> float:
    """Share of the second w's symbols that the model holds for the likeliest ones, the true ones before them given."""
    targets = targets_of(token_ids)
    guesses = torch.cat([model(part).argmax(dim=-1) for part in token_ids.split(EVALUATION_ROWS)])
    return float((guesses == targets)[targets != IGNORED].float().mean())
