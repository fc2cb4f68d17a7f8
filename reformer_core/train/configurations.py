"""The configurations that are trained unless others are given: small ones."""

from typing import Any

from reformer_core.config import ReformerConfig

_WITHOUT_DROPOUT: dict[str, Any] = {
    "hidden_dropout_prob": 0.0,
    "lsh_attention_probs_dropout_prob": 0.0,
    "local_attention_probs_dropout_prob": 0.0,
}


def text_config(vocab_size: int) -> ReformerConfig:
    """For texts: positions for 1,048,576 tokens."""
    return ReformerConfig(
        attn_layers=("local", "local", "lsh", "local", "lsh", "local"),
        hidden_size=256,
        feed_forward_size=480,
        num_attention_heads=4,
        attention_head_size=48,
        hidden_act="relu",
        vocab_size=vocab_size,
        local_attn_chunk_length=64,
        lsh_attn_chunk_length=128,
        num_hashes=2,
        num_buckets=(64, 128),
        hash_seed=0,
        axial_pos_shape=(4096, 256),
        axial_pos_embds_dim=(8, 248),
        max_position_embeddings=1024 * 1024,
        **_WITHOUT_DROPOUT,
    )


def image_config(rows: int, columns: int) -> ReformerConfig:
    """For images of that size: a position for each channel of each pixel, on three axes, as in the paper."""
    return ReformerConfig(
        attn_layers=("local", "local", "lsh", "local"),
        hidden_size=128,
        feed_forward_size=512,
        num_attention_heads=4,
        attention_head_size=32,
        hidden_act="relu",
        vocab_size=256,
        eos_token_id=None,
        pad_token_id=None,
        local_attn_chunk_length=3 * columns,  # a row: each pixel sees the one above it
        lsh_attn_chunk_length=64,
        num_hashes=2,
        hash_seed=0,
        axial_pos_shape=(rows, columns, 3),
        axial_pos_embds_dim=(52, 52, 24),
        max_position_embeddings=3 * rows * columns,
        **_WITHOUT_DROPOUT,
    )
