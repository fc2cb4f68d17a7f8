"""What a training run is told: settings, validated."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reformer_core.config import ReformerConfig


def text_config(vocab_size: int) -> ReformerConfig:
    """The configuration that is trained unless another one is given: small, with positions for 1,048,576 tokens."""
    return ReformerConfig(
        attn_layers=("local", "lsh") * 3,
        hidden_size=256,
        feed_forward_size=512,
        num_attention_heads=2,
        attention_head_size=64,
        hidden_act="relu",
        vocab_size=vocab_size,
        local_attn_chunk_length=64,
        lsh_attn_chunk_length=64,
        num_hashes=2,
        num_buckets=(64, 128),
        hash_seed=0,
        axial_pos_shape=(1024, 1024),
        axial_pos_embds_dim=(64, 192),
        max_position_embeddings=1024 * 1024,
        hidden_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
    )


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Raises ValueError; exactly one of `steps` and `minutes` is the run's budget."""

    steps: int | None = None
    """Steps in all."""
    minutes: float | None = None
    """Minutes of training in all, pauses between interruption and resumption left out. The learning rate follows the
    clock, so that it ends where it should on however busy a machine."""
    tokens_per_step: int = 2048
    """Tokens of a batch, about: crops of one length, one at least."""
    crop_tokens: tuple[int, ...] = (1024, 2048, 2048, 4096)
    """Lengths of the crops; each step draws one, so a length that is given twice is drawn twice as often."""
    learning_rate: float = 2e-3
    """Its peak."""
    warmup: float = 0.02
    """Share of the budget in which the learning rate rises from zero; then it falls along a cosine to zero."""
    weight_decay: float = 0.1
    """Decoupled; of the matrices, not of norms, biases and embeddings."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    seed: int = 0
    """Of the weights, the crops and the dropout."""
    bfloat16: bool | None = None
    """Compute in bfloat16, weights stay float32; None: where the device multiplies it natively."""
    checkpoint_minutes: float = 5.0
    """A checkpoint is written, and the validation texts are read, this often."""
    validation_tokens: int = 65536
    """Validation reads a text in sequences of this many tokens; only the first one until the training is over."""

    def __post_init__(self) -> None:
        def require(name: str, condition: bool, allowed: str) -> None:
            if not condition:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be {allowed}")

        object.__setattr__(self, "crop_tokens", tuple(self.crop_tokens))  # JSON knows no tuples
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("either steps or minutes must be given, not both")
        require("steps", self.steps is None or self.steps >= 1, "1 or more")
        require("minutes", self.minutes is None or _positive(self.minutes), "above 0")
        require("tokens_per_step", self.tokens_per_step >= 1, "1 or more")
        require("crop_tokens", len(self.crop_tokens) >= 1 and min(self.crop_tokens) >= 1, "lengths of 1 or more")
        require("learning_rate", _positive(self.learning_rate), "above 0")
        require("warmup", 0 <= self.warmup < 1, "at least 0 and below 1")
        require("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "0 or more")
        require("clip_norm", _positive(self.clip_norm), "above 0")
        require("seed", 0 <= self.seed < 2**63, "between 0 and 2**63 - 1")
        require("checkpoint_minutes", _positive(self.checkpoint_minutes), "above 0")
        require("validation_tokens", self.validation_tokens >= 2, "2 or more")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainSettings":
        """The inverse of `to_dict`; raises ValueError for an unknown name."""
        unknown = values.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as for JSON."""
        return {**dataclasses.asdict(self), "crop_tokens": list(self.crop_tokens)}


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
