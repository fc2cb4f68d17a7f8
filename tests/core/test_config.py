"""The configuration: Hugging Face's names, defaults and derived values; wrong values are refused by name."""

import dataclasses
import json
from typing import Any

import pytest
import transformers

from reformer_core import ReformerConfig
from tests.core.models import small_config


def test_defaults_are_transformers() -> None:
    theirs = json.loads(transformers.ReformerConfig(is_decoder=True).to_json_string(use_diff=False))
    ours = ReformerConfig().to_dict()
    ours.pop("architectures")
    assert {name: theirs[name] for name in ours} == ours


@pytest.mark.parametrize(
    "config",
    [
        ReformerConfig(),
        small_config(num_buckets=(4, 8), hash_seed=None, eos_token_id=None),
        small_config(axial_pos_embds=False, num_buckets=None),
    ],
)
def test_json_round_trip(config: ReformerConfig) -> None:
    assert ReformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_other_keys_are_left_aside() -> None:
    values = {**ReformerConfig().to_dict(), "chunk_size_lm_head": 0, "task_specific_params": {"x": 1}}
    assert ReformerConfig.from_dict(values) == ReformerConfig()


def test_reads_what_transformers_writes() -> None:
    theirs = transformers.ReformerConfig(is_decoder=True, num_buckets=[4, 8], attn_layers=["lsh"], eos_token_id=None)
    expected = ReformerConfig(num_buckets=(4, 8), attn_layers=("lsh",), eos_token_id=None)
    assert ReformerConfig.from_dict(json.loads(theirs.to_json_string())) == expected


def test_encoders_are_refused() -> None:
    """Transformers leaves `is_decoder` out where it is false."""
    with pytest.raises(ValueError, match="is_decoder is False, but must be true"):
        ReformerConfig.from_dict(json.loads(transformers.ReformerConfig().to_json_string()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_layers", ()),
        ("attn_layers", ("lsh", "full")),
        ("attn_layers", "lsh"),
        ("attn_layers", 6),
        ("hidden_size", 0),
        ("hidden_size", 32.0),
        ("hidden_size", "32"),
        ("feed_forward_size", -1),
        ("feed_forward_size", 2**20 + 1),
        ("vocab_size", 2**31),
        ("num_hashes", 2**25),  # rotations that would fill the memory
        ("num_buckets", (2,) * 40),
        ("local_num_chunks_before", 2**31),
        ("axial_pos_shape", (2**16, 2**16)),
        ("axial_pos_embds_dim", (-8, 40)),
        ("layer_norm_eps", 10**400),
        ("layer_norm_eps", -1.0),
        ("initializer_range", -1),
        ("num_attention_heads", True),
        ("attention_head_size", None),
        ("hidden_act", "tanhshrink"),
        ("hidden_act", ["relu"]),
        ("vocab_size", 0),
        ("eos_token_id", "2"),
        ("eos_token_id", [2]),
        ("local_attn_chunk_length", 0),
        ("lsh_attn_chunk_length", 0),
        ("local_num_chunks_before", -1),
        ("lsh_num_chunks_before", -1),
        ("local_num_chunks_after", 1),
        ("lsh_num_chunks_after", 1),
        ("num_hashes", 0),
        ("num_buckets", 7),
        ("num_buckets", 0),
        ("num_buckets", (4, 5)),
        ("num_buckets", ()),
        ("num_buckets", "8"),
        ("num_buckets", (4, "8")),
        ("hash_seed", 2**64),
        ("hash_seed", 0.5),
        ("axial_pos_embds", 1),
        ("axial_pos_shape", (32, 0)),
        ("axial_pos_shape", (32, 6.4)),
        ("axial_pos_shape", (4, 8, 64)),
        ("axial_pos_embds_dim", (8, 25)),
        ("axial_pos_embds_dim", (32,)),
        ("max_position_embeddings", 0),
        ("layer_norm_eps", "1e-12"),
        ("layer_norm_eps", float("nan")),
        ("hidden_dropout_prob", 1.0),
        ("hidden_dropout_prob", -0.1),
        ("lsh_attention_probs_dropout_prob", 2),
        ("local_attention_probs_dropout_prob", None),
        ("is_decoder", False),
    ],
)
def test_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    config = small_config()
    with pytest.raises(ValueError, match=rf"^{name} is|^axial_pos_embds_dim is"):
        dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize(
    ("positions", "chunk"),
    [(64, 64), (128, 64), (1024, 64), (4096, 64), (65536, 64), (524288, 64), (65536, 256), (8, 64)],
)
def test_number_of_buckets_is_transformers_for_the_longest_sequence(positions: int, chunk: int) -> None:
    config = small_config(
        attn_layers=("lsh",),
        num_buckets=None,
        axial_pos_embds=False,
        max_position_embeddings=positions,
        lsh_attn_chunk_length=chunk,
    )
    if positions < chunk:
        assert config.bucket_factors == (2,)  # never used, as nothing is longer than a chunk
        return
    theirs = transformers.models.reformer.modeling_reformer.LSHSelfAttention(
        transformers.ReformerConfig(**config.to_dict())
    )
    theirs._set_num_buckets(positions)
    expected = theirs.num_buckets if isinstance(theirs.num_buckets, list) else [theirs.num_buckets]
    assert list(config.bucket_factors) == expected


def test_derived_values() -> None:
    config = small_config(local_attn_chunk_length=24, lsh_attn_chunk_length=16, num_buckets=(2, 4, 6))
    assert config.pinned == config
    assert small_config(hash_seed=None, num_buckets=None).pinned == small_config(hash_seed=0, num_buckets=(16, 32))
    assert config.max_tokens == 32 * 64
    assert small_config(axial_pos_embds=False, max_position_embeddings=70).max_tokens == 70
    assert config.total_buckets == 48
    assert (config.lsh_window, config.local_window) == (32, 48)
    assert config.chunk_multiple == 48
    assert [config.padded_length(tokens) for tokens in (1, 16, 17, 48, 49)] == [1, 16, 48, 48, 96]
    only_local = dataclasses.replace(config, attn_layers=("local",))
    assert only_local.padded_length(25) == 48
    assert only_local.padded_length(24) == 24
