"""The model's configuration: Hugging Face's `ReformerConfig`, frozen, validated, and with its derived values."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args, get_origin

ACTIVATIONS = ("relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish", "tanh", "sigmoid")

# Far beyond any model. A config is read before its weights: what it claims must neither overflow nor fill the memory.
MAX_WIDTH = 2**20
MAX_COUNT = 2**31 - 1
MAX_ROTATIONS = 2**28  # numbers of all layers: a gigabyte, and one for their opposites
_WIDTHS = ("hidden_size", "feed_forward_size", "num_attention_heads", "attention_head_size")
_FEW_ROTATIONS = (
    f"so small that num_attention_heads × attention_head_size × num_hashes × num_buckets / 2 numbers "
    f"a layer are at most {MAX_ROTATIONS:,} in all"
)


@dataclass(frozen=True)
class ReformerConfig:
    """Hyperparameters of a decoder-only Reformer. Names and defaults are Hugging Face's; raises ValueError."""

    attn_layers: tuple[str, ...] = ("local", "lsh", "local", "lsh", "local", "lsh")
    """Kind of each layer's attention, "local" or "lsh", first layer first."""
    hidden_size: int = 256
    """Width d of each of the two residual streams."""
    feed_forward_size: int = 512
    """Inner width of the feed-forward blocks."""
    num_attention_heads: int = 12
    attention_head_size: int = 64
    hidden_act: str = "relu"
    """Activation of the feed-forward blocks."""
    vocab_size: int = 320
    eos_token_id: int | None = 2
    """Ends a generation; None: nothing does."""
    pad_token_id: int | None = 0

    local_attn_chunk_length: int = 64
    local_num_chunks_before: int = 1
    """Chunks before its own that a query sees in local attention."""
    local_num_chunks_after: int = 0
    """Only 0: the model is causal."""
    lsh_attn_chunk_length: int = 64
    lsh_num_chunks_before: int = 1
    """Chunks before its own, in bucket order, that a query sees in LSH attention."""
    lsh_num_chunks_after: int = 0
    """Only 0."""
    num_hashes: int = 1
    """Hash rounds R."""
    num_buckets: int | tuple[int, ...] | None = None
    """Buckets a round: an even number, a tuple of even factors, or None: see `bucket_factors`."""
    hash_seed: int | None = None
    """Seed of the hash rotations; None is treated as 0."""

    axial_pos_embds: bool = True
    """Axial positions (section 5 of the paper's appendix; one table an axis), else one plain table."""
    axial_pos_shape: tuple[int, ...] = (64, 64)
    """Rows an axis; their product is the number of positions."""
    axial_pos_embds_dim: tuple[int, ...] = (64, 192)
    """Width of each axis's part of the embedding; they add up to hidden_size."""
    max_position_embeddings: int = 4096
    """Positions of a plain table; the number of buckets is derived from it if `num_buckets` is None."""

    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    axial_norm_std: float = 1.0
    hidden_dropout_prob: float = 0.05
    lsh_attention_probs_dropout_prob: float = 0.0
    local_attention_probs_dropout_prob: float = 0.05
    is_decoder: bool = True
    """Only True: a language model."""

    def __post_init__(self) -> None:
        def require(name: str, condition: bool, allowed: str) -> None:
            if not condition:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be {allowed}")

        for name in ("attn_layers", "axial_pos_shape", "axial_pos_embds_dim", "num_buckets"):
            if isinstance(getattr(self, name), list):  # JSON knows no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in dataclasses.fields(self):
            type_name = field.type.__name__ if isinstance(field.type, type) else str(field.type)
            require(field.name, _is_a(getattr(self, field.name), field.type), f"of type {type_name}")
            if field.type is float:  # JSON's 1 is an int, and any size of one
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        for name in (
            "hidden_size",
            "feed_forward_size",
            "num_attention_heads",
            "attention_head_size",
            "vocab_size",
            "local_attn_chunk_length",
            "lsh_attn_chunk_length",
            "num_hashes",
            "max_position_embeddings",
        ):
            most = MAX_WIDTH if name in _WIDTHS else MAX_COUNT
            require(name, 1 <= getattr(self, name) <= most, f"1 or more, and at most {most:,}")
        require("attn_layers", len(self.attn_layers) >= 1, "one kind a layer")
        require("attn_layers", set(self.attn_layers) <= {"local", "lsh"}, 'made of "local" and "lsh"')
        require("hidden_act", self.hidden_act in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        for name in ("local_num_chunks_before", "lsh_num_chunks_before"):
            require(name, 0 <= getattr(self, name) <= MAX_COUNT, f"0 or more, and at most {MAX_COUNT:,}")
        require("local_num_chunks_after", self.local_num_chunks_after == 0, "0, for the model is causal")
        require("lsh_num_chunks_after", self.lsh_num_chunks_after == 0, "0, for the model is causal")
        require("is_decoder", self.is_decoder is True, "true: only causal models can be served")
        if self.num_buckets is not None:
            even = all(factor >= 2 and factor % 2 == 0 for factor in self.bucket_factors)
            require("num_buckets", len(self.bucket_factors) >= 1 and even, "an even number, or a list of even factors")
            require("num_buckets", self.total_buckets <= MAX_COUNT, f"at most {MAX_COUNT:,}")
        rotations = (
            self.num_attention_heads * self.attention_head_size * self.num_hashes * sum(self.bucket_factors) // 2
        )
        require("num_hashes", rotations * len(self.attn_layers) <= MAX_ROTATIONS, _FEW_ROTATIONS)
        if self.hash_seed is not None:
            require("hash_seed", -(2**63) <= self.hash_seed < 2**64, "between -2**63 and 2**64 - 1")
        if self.axial_pos_embds:
            require("axial_pos_shape", len(self.axial_pos_shape) >= 1 and min(self.axial_pos_shape) >= 1, "all >= 1")
            same_axes = len(self.axial_pos_embds_dim) == len(self.axial_pos_shape)
            require("axial_pos_embds_dim", same_axes, f"as long as axial_pos_shape, {self.axial_pos_shape}")
            require("axial_pos_shape", self.max_tokens <= MAX_COUNT, f"of a product of at most {MAX_COUNT:,}")
            positive = all(width >= 1 for width in self.axial_pos_embds_dim)
            require("axial_pos_embds_dim", positive, "all >= 1")
            total = sum(self.axial_pos_embds_dim)
            require("axial_pos_embds_dim", total == self.hidden_size, f"of sum {self.hidden_size}, the hidden_size")
        for name in ("layer_norm_eps", "initializer_range", "axial_norm_std"):
            require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("hidden_dropout_prob", "lsh_attention_probs_dropout_prob", "local_attention_probs_dropout_prob"):
            require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ReformerConfig":
        """From the content of a `config.json`; keys that don't concern the model's function are left aside.

        Raises:
            ValueError: a value has the wrong type or is out of its range; the message names the key.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        explicit = {"is_decoder": False, **values}  # transformers leaves it out where it is false
        return cls(**{name: value for name, value in explicit.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers can load."""
        fields = dataclasses.asdict(self)
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {
            "architectures": ["ReformerModelWithLMHead"],
            "model_type": "reformer",
            "tie_word_embeddings": False,
            **values,
        }

    @property
    def pinned(self) -> "ReformerConfig":
        """The same with all that it leaves open made explicit, so that every program hashes alike."""
        factors = self.bucket_factors
        num_buckets = factors if len(factors) > 1 else factors[0]
        return dataclasses.replace(self, hash_seed=self.hash_seed or 0, num_buckets=num_buckets)

    @property
    def max_tokens(self) -> int:
        """Number of positions: the longest sequence."""
        return math.prod(self.axial_pos_shape) if self.axial_pos_embds else self.max_position_embeddings

    @property
    def bucket_factors(self) -> tuple[int, ...]:
        """Factors of the number of buckets, least significant first.

        Where `num_buckets` is None, Hugging Face takes it from the length of the first long call; here it follows from
        `max_position_embeddings` by the same formula, so that it doesn't depend on the order of calls.
        """
        if isinstance(self.num_buckets, tuple):
            return self.num_buckets
        if self.num_buckets is not None:
            return (self.num_buckets,)
        length, positions = self.lsh_attn_chunk_length, self.max_position_embeddings
        power = max((2 * (positions // length)).bit_length() - 1, 1)
        if 2**power > 2 * max(int((positions // length) ** 0.5), length):
            return (2 ** (power // 2), 2 ** (power - power // 2))
        return (2**power,)

    @property
    def total_buckets(self) -> int:
        """Buckets a hash round."""
        return math.prod(self.bucket_factors)

    @property
    def lsh_window(self) -> int:
        """Slots that a query sees in one hash round."""
        return (1 + self.lsh_num_chunks_before) * self.lsh_attn_chunk_length

    @property
    def local_window(self) -> int:
        """Positions that a query sees at most in local attention."""
        return (1 + self.local_num_chunks_before) * self.local_attn_chunk_length

    @property
    def chunk_lengths(self) -> tuple[int, ...]:
        """Chunk lengths of the kinds of layers that the model has."""
        lengths = {"local": self.local_attn_chunk_length, "lsh": self.lsh_attn_chunk_length}
        return tuple(lengths[kind] for kind in sorted(set(self.attn_layers)))

    @property
    def chunk_multiple(self) -> int:
        """Least common multiple of the chunk lengths."""
        return math.lcm(*self.chunk_lengths)

    def padded_length(self, tokens: int) -> int:
        """Length a sequence is padded to: a multiple of all chunk lengths, if it is longer than the smallest."""
        if tokens <= min(self.chunk_lengths):
            return tokens
        return -(-tokens // self.chunk_multiple) * self.chunk_multiple


def _is_a(value: object, annotation: Any) -> bool:
    """Whether a value is what its field is declared as: JSON gives no guarantee, and True is no integer here."""
    if get_origin(annotation) is UnionType:
        return any(_is_a(value, kind) for kind in get_args(annotation))
    if get_origin(annotation) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, get_args(annotation)[0]) for item in value)
    if annotation is float:
        largest = sys.float_info.max  # compared so, for isfinite can't take every int
        return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest
    return isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))
