"""A small model, small texts and images, and settings for them, for the tests of training."""

from pathlib import Path
from typing import Any

import numpy
import torch

from reformer_core.config import ReformerConfig
from reformer_core.model import ReformerModel
from reformer_core.tokenizers import ByteTokenizer
from reformer_core.train.data import Examples
from reformer_core.train.images import Pixels
from reformer_core.train.processes import Processes
from reformer_core.train.settings import RunSettings
from reformer_core.train.settings_file import build_settings
from reformer_core.train.texts import Crops, TextFile, tokenize
from reformer_core.train.trainer import Trainer

HYPERPARAMETERS: dict[str, Any] = {
    "attn_layers": ["local", "lsh"],
    "hidden_size": 32,
    "feed_forward_size": 32,
    "num_attention_heads": 2,
    "attention_head_size": 16,
    "local_attn_chunk_length": 8,
    "lsh_attn_chunk_length": 8,
    "num_hashes": 2,
    "num_buckets": [4, 4],
    "hash_seed": 0,
    "axial_pos_shape": [16, 16],
    "axial_pos_embds_dim": [16, 16],
    "max_position_embeddings": 256,
    "axial_norm_std": 0.02,
    "hidden_dropout_prob": 0.1,
}
"""With dropout, so that its randomness is tested as well."""

WORDS = "the quick brown fox jumps over the lazy dog.\n"
TEXT = tokenize(TextFile(Path("words.txt"), WORDS.encode() * 8), ByteTokenizer())


def settings(*phases: dict[str, Any], **others: Any) -> RunSettings:
    """Of a run in float32 on crops of 20 and 32 tokens; by default 12 steps of about 64 tokens."""
    schedule = [{"lengths": [20, 32], "batch_tokens": 64, **phase} for phase in phases or ({"steps": 12},)]
    optimizer = {"learning_rate": 1e-2, **others.pop("optimizer", {})}
    table = {"data": {"texts": ["words.txt"]}, "schedule": schedule, "optimizer": optimizer, "precision": "float32"}
    return build_settings(table | others, "settings", Path())


def trainer(run: RunSettings, processes: Processes = Processes(), **hyperparameters: Any) -> Trainer:  # noqa: B008
    """Of a new small model on `TEXT`."""
    torch.manual_seed(run.seed)
    config = ReformerConfig.from_dict({**HYPERPARAMETERS, "vocab_size": 258, "is_decoder": True, **hyperparameters})
    return Trainer(ReformerModel(config), crops(), run, processes)


def crops() -> Examples:
    """Of `TEXT`, for the small model."""
    return Crops([TEXT], longest=32, max_tokens=256)


def pixels(count: int, rows: int = 4, columns: int = 5) -> Pixels:
    """Random images, uint8 [count, rows, columns, 3]."""
    return numpy.random.default_rng(0).integers(256, size=(count, rows, columns, 3), dtype=numpy.uint8)
