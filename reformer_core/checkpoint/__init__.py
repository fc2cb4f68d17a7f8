"""Checkpoints: model directories in Hugging Face's format, both ways.

config.json          the configuration
model.safetensors    the weights, under transformers' names; read also in shards, or as pytorch_model.bin
spiece.model         the tokenizer's file, see `tokenizers`
"""

from reformer_core.checkpoint.hub import model_directory
from reformer_core.checkpoint.loading import load_config, load_model
from reformer_core.checkpoint.saving import save_model

__all__ = ["load_config", "load_model", "model_directory", "save_model"]
