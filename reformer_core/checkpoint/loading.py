"""Reads a checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from reformer_core.checkpoint.hub import model_directory
from reformer_core.checkpoint.weight_files import read_json, read_weights
from reformer_core.checkpoint.weight_names import SECOND_BIAS, is_constant, stored_name
from reformer_core.config import ReformerConfig
from reformer_core.errors import CheckpointError, InvalidParameterError
from reformer_core.model import ReformerModel
from reformer_core.placement import choose_device, choose_dtype

CONFIG_FILE = "config.json"
MAX_PROBLEMS = 8  # that one message lists


def load_model(
    source: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    num_hashes: int | None = None,
    hash_seed: int | None = None,
) -> ReformerModel:
    """The model of a checkpoint, in evaluation mode.

    Every weight is read, converted and placed before the next one: memory is needed for the model once. The global
    random state isn't touched.

    Args:
        source: a directory, or a hub id where there is a network or a cached copy.
        device: "auto", "cpu", "cuda" or "cuda:1" …, see `placement.choose_device`.
        dtype: "auto", "float16", "bfloat16" or "float32", see `placement.choose_dtype`.
        num_hashes: hash rounds; None: the checkpoint's. More are slower and closer to full attention.
        hash_seed: seed of the hash rotations; None: the checkpoint's, and 0 if it has none.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged, incomplete or of another kind of model; the
            message says which file, and what was expected.
        InvalidParameterError: another argument is out of its range.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    directory = model_directory(source)
    config = _with_hashes(load_config(directory), num_hashes, hash_seed)
    with torch.device("meta"):  # neither memory nor random numbers for weights that are replaced anyway
        model = ReformerModel(config)
    weights = _load_weights(directory, model.state_dict(), chosen_device, chosen_dtype)
    model.load_state_dict(weights, assign=True)
    return model.to(chosen_device)  # the rotations, which are no weights


def load_config(source: str | Path) -> ReformerConfig:
    """The configuration of a checkpoint; raises CheckpointError, naming the key that is wrong."""
    path = model_directory(source) / CONFIG_FILE
    values = read_json(path)
    if values.get("model_type") != "reformer":
        raise CheckpointError(f'{path}: model_type is {values.get("model_type")!r}, but must be "reformer"')
    try:
        return ReformerConfig.from_dict(values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _with_hashes(config: ReformerConfig, num_hashes: int | None, hash_seed: int | None) -> ReformerConfig:
    for name, value in (("num_hashes", num_hashes), ("hash_seed", hash_seed)):
        changes: dict[str, Any] = {} if value is None else {name: value}
        try:
            config = dataclasses.replace(config, **changes)
        except ValueError as error:
            raise InvalidParameterError(name, str(error)) from error
    return config


def _load_weights(
    directory: Path, expected: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The weights under our names. Only names and shapes of `expected` matter."""
    ours = {stored_name(name): name for name in expected} | {SECOND_BIAS: "head.bias"}
    weights: dict[str, torch.Tensor] = {}
    problems: list[str] = []
    for stored, tensor, path in read_weights(directory):
        if is_constant(stored):
            continue
        name = ours.get(stored)
        if name is None:
            problems.append(f"{stored} in {path.name} is no weight of this model")
            continue
        if tensor.shape != expected[name].shape:
            shapes = f"{list(expected[name].shape)}, found {list(tensor.shape)}"
            problems.append(f"{stored} in {path.name}: expected shape {shapes}")
        elif not tensor.is_floating_point():
            problems.append(f"{stored} in {path.name}: expected floating-point numbers, found {tensor.dtype}")
        weights[name] = tensor.to(device, dtype, copy=True)  # a copy: the file behind a mapped tensor may change
    problems += [f"{stored_name(name)} is missing" for name in expected if name not in weights]
    if problems:
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        listed = "; ".join(problems[:MAX_PROBLEMS] + more)
        raise CheckpointError(f"{directory}: the weights don't fit {CONFIG_FILE}: {listed}")
    return weights
