"""The weights in a model directory, tensor by tensor: safetensors or a torch pickle, in one file or several."""

import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from reformer_core.errors import CheckpointError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there is taken
INDEX_SUFFIX = ".index.json"


def read_weights(directory: Path) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """Name, tensor on the CPU and file of every weight, one at a time. Tensors may be views of a file that is mapped.

    Nothing that a file says is executed: of a pickle, only tensors and plain values are read.

    Raises:
        CheckpointError: there are no weights, or a file of them is damaged.
    """
    for path in _weight_files(directory):
        read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
        for name, tensor in read(path):
            yield name, tensor, path


def _weight_files(directory: Path) -> list[Path]:
    """The files that the weights are in: one, or the shards that an index names."""
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            return [directory / name]
        index = directory / (name + INDEX_SUFFIX)
        if index.is_file():
            return _shards(index)
    expected = ", ".join((*WEIGHT_FILES, *(name + INDEX_SUFFIX for name in WEIGHT_FILES)))
    raise CheckpointError(f"{directory} has no weights; expected one of {expected}")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f'{index}: expected "weight_map", which says for each tensor in which file it is')
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}; expected a file in the same directory")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name} is missing; {index.name} says that it holds weights")
    return [index.parent / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError if the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; expected a model directory in Hugging Face's format") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
        raise CheckpointError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}; expected an object")
    return content


def _read_safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            with safe_open(path, framework="pt") as file:  # mapped anew, or all that was read would stay in memory
                tensor = file.get_tensor(name)
            yield name, tensor
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no complete safetensors file: {error}") from error


def _read_pickle(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:  # files of torch before 1.6 are no zip archives and can't be mapped
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds Python objects other than tensors, never loaded, for they could run code"
        ) from error
    except Exception as error:  # a damaged file fails with whatever torch's reader stumbles over
        raise CheckpointError(f"{path} is damaged, or no file that torch.save wrote: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise CheckpointError(f"{path} holds something else than a dictionary of tensors, which was expected")
    yield from weights.items()
