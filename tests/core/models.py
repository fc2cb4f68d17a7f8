"""Small random models, their twins in transformers, and their checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from reformer_core import ReformerConfig, ReformerModel, load_model
from reformer_core.checkpoint.weight_names import SECOND_BIAS, stored_name
from reformer_core.lsh_attention import LSHAttention


def small_config(**values: Any) -> ReformerConfig:
    """A tiny model of one local and one LSH layer."""
    defaults: dict[str, Any] = {
        "attn_layers": ("local", "lsh"),
        "hidden_size": 32,
        "feed_forward_size": 48,
        "num_attention_heads": 2,
        "attention_head_size": 16,
        "vocab_size": 50,
        "num_hashes": 2,
        "num_buckets": 8,
        "hash_seed": 3,
        "axial_pos_shape": (32, 64),
        "axial_pos_embds_dim": (8, 24),
        "max_position_embeddings": 2048,
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 8,
    }
    return ReformerConfig(**{**defaults, **values})


def random_model(config: ReformerConfig, seed: int = 0) -> ReformerModel:
    """With weights so large that attention isn't flat and a wrong mask shows."""
    model = ReformerModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def hugging_face_twin(model: ReformerModel) -> transformers.ReformerModelWithLMHead:
    """transformers' model with the same configuration and weights, in evaluation mode."""
    config = transformers.ReformerConfig(**model.config.to_dict())
    twin = transformers.ReformerModelWithLMHead(config).eval()
    weights = {stored_name(name): tensor for name, tensor in model.state_dict().items()}
    twin.load_state_dict({**weights, SECOND_BIAS: model.head.bias.detach()})
    return twin


def hash_margin(model: ReformerModel, token_ids: torch.Tensor) -> float:
    """By how much the closest decision for a bucket was won, relative to the rotated vectors' size.

    Where that is near the precision of float32, the order of summation decides; there two right implementations may
    differ.
    """
    margins = [1.0]

    def record(attention: LSHAttention, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        query_key = attention.project(inputs[0])[0]
        rotations = attention.rotations.flatten(2).to(query_key.dtype)
        rotated = (query_key @ rotations).unflatten(-1, attention.rotations.shape[2:])
        for part in rotated.split(list(model.config.bucket_factors), dim=-1):
            best = part.topk(2).values
            margins.append(float(((best[..., 0] - best[..., 1]) / best[..., 0]).min()))

    hooks = [layer.register_forward_hook(record) for layer in model.modules() if isinstance(layer, LSHAttention)]
    with torch.no_grad():
        model(token_ids)
    for hook in hooks:
        hook.remove()
    return min(margins)


def clear_tokens(model: ReformerModel, rows: int, tokens: int) -> torch.Tensor:
    """Random token ids, int64 [rows, tokens], none of whose hashes is a close decision."""
    generator = torch.Generator().manual_seed(tokens)
    for _ in range(100):
        token_ids = torch.randint(model.config.vocab_size, (rows, tokens), generator=generator)
        if hash_margin(model, token_ids) > 3e-6:
            return token_ids
    raise AssertionError("every draw has a close decision")


def load_on_cpu(directory: Path, **options: Any) -> ReformerModel:
    """As it was saved: on the CPU, in float32."""
    return load_model(directory, device="cpu", dtype="float32", **options)


def edit_config(**values: Any) -> Callable[[Path], None]:
    """What sets keys of a checkpoint's `config.json`; `...` takes the key away."""

    def edit(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        config.update(values)
        (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return edit
