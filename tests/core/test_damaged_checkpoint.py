"""Damaged, foreign and hostile checkpoints: refused with a message that names the file and what was expected."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reformer_core.errors import CheckpointError
from tests.core.models import edit_config, load_on_cpu


def edit_weights(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        edit(weights)
        save_file(weights, directory / "model.safetensors")

    return rewrite


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


def truncate(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:-100])


def only_pickle(content: Callable[[Path], None]) -> Callable[[Path], None]:
    def replace(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        content(directory / "pytorch_model.bin")

    return replace


def only_index(content: object) -> Callable[[Path], None]:
    def replace(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / "model.safetensors.index.json").write_text(json.dumps(content))

    return replace


def truncated_pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-200])


QUERY = "reformer.encoder.layers.0.attention.self_attention.query.weight"
# What is wrong with a checkpoint: how it gets so, and what the message has to say.
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), r"config\.json is missing; expected a model directory"),
    "config no JSON": (write("config.json", b"{"), r"config\.json can't be read as JSON: "),
    "config no UTF-8": (write("config.json", b"\xff\xfe{}"), r"config\.json can't be read as JSON: "),
    "config too deep": (write("config.json", b"[" * 5000), r"config\.json can't be read as JSON: "),
    "config no object": (write("config.json", b"[1]"), r"config\.json holds a JSON list; expected an object"),
    "other model": (edit_config(model_type="bert"), r'config\.json: model_type is \'bert\', but must be "reformer"'),
    "no model type": (edit_config(model_type=...), r'config\.json: model_type is None, but must be "reformer"'),
    "encoder": (edit_config(is_decoder=...), r"config\.json: is_decoder is False, but must be true"),
    "wrong value": (edit_config(num_hashes=0), r"config\.json: num_hashes is 0, but must be 1 or more"),
    "wrong type": (edit_config(vocab_size="50"), r"config\.json: vocab_size is '50', but must be of type int"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        r"has no weights; expected one of model\.safetensors, ",
    ),
    "missing weight": (
        edit_weights(lambda w: w.__delitem__(QUERY)),
        rf"the weights don't fit config\.json: {QUERY} is missing",
    ),
    "missing bias": (edit_weights(lambda w: w.__delitem__("lm_head.bias")), r"lm_head\.bias is missing"),
    "extra weight": (
        edit_weights(lambda w: w.update({"bert.pooler": torch.zeros(1)})),
        r"bert\.pooler in model\.safetensors is no weight of this model",
    ),
    "wrong shape": (
        edit_weights(lambda w: w.update({QUERY: torch.zeros(3, 4)})),
        rf"{QUERY} in model\.safetensors: expected shape \[32, 32\], found \[3, 4\]$",
    ),
    "wrong kind": (
        edit_weights(lambda w: w.update({QUERY: torch.zeros(32, 32, dtype=torch.int8)})),
        rf"{QUERY} in model\.safetensors: expected floating-point numbers, found torch\.int8$",
    ),
    "another config's weights": (
        edit_config(vocab_size=60),
        r"lm_head\.decoder\.weight in .*: expected shape \[60, 64\]",
    ),
    "many problems": (edit_config(attn_layers=["lsh"] * 40), r"; and \d+ more$"),
    "truncated": (truncate, r"model\.safetensors is no complete safetensors file: "),
    "garbage": (write("model.safetensors", b"garbage" * 99), r"model\.safetensors is no complete safetensors file: "),
    "empty": (write("model.safetensors", b""), r"model\.safetensors is no complete safetensors file: "),
    "pickle garbage": (only_pickle(lambda p: p.write_bytes(b"x" * 99) and None), r"pytorch_model\.bin is damaged"),
    "pickle with half a text": (
        only_pickle(
            lambda p: (
                p.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00(X") and None
            )
        ),
        r"pytorch_model\.bin is damaged",
    ),
    "pickle empty": (only_pickle(lambda p: p.write_bytes(b"") and None), r"pytorch_model\.bin is damaged"),
    "pickle truncated": (only_pickle(truncated_pickle), r"pytorch_model\.bin is damaged"),
    "pickle of a list": (
        only_pickle(lambda p: torch.save([1], p)),
        r"pytorch_model\.bin holds something else than a dict",
    ),
    "pickle of numbers": (
        only_pickle(lambda p: torch.save({"a": 1}, p)),
        r"pytorch_model\.bin holds something else than",
    ),
    "index without map": (only_index({}), r'index\.json: expected "weight_map"'),
    "index no object": (only_index([]), r"index\.json holds a JSON list"),
    "shard missing": (
        only_index({"weight_map": {QUERY: "model-00001-of-00001.safetensors"}}),
        r"model-00001-of-00001\.safetensors is missing; model\.safetensors\.index\.json says that it holds weights",
    ),
    "shard elsewhere": (
        only_index({"weight_map": {QUERY: "../x.safetensors"}}),
        r"names '\.\./x\.safetensors'; expected a file in",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_refused_by_the_files_name(saved: Path, damage: str) -> None:
    do, message = DAMAGES[damage]
    do(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_on_cpu(saved)
    assert str(saved) in str(caught.value)


class Code:
    """Pickled, it would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(saved: Path, tmp_path: Path, zipped: bool) -> None:
    (saved / "model.safetensors").unlink()
    file = saved / "pytorch_model.bin"
    torch.save({"lm_head.bias": Code(tmp_path / "ran")}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="never loaded, for they could run code"):
        load_on_cpu(saved)
    assert not (tmp_path / "ran").exists()
    file.write_bytes(pickle.dumps({"lm_head.bias": Code(tmp_path / "ran")}, protocol=2))
    with pytest.raises(CheckpointError):
        load_on_cpu(saved)
    assert not (tmp_path / "ran").exists()
