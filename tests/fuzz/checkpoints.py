"""Checkpoints from strangers: config.json and safetensors. Loaded, or refused with CheckpointError."""

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from reformer_core import load_model, save_model
from reformer_core.checkpoint.weight_files import read_weights
from reformer_core.errors import CheckpointError
from reformer_core.tokenizers import ByteTokenizer
from tests.fuzz.mutations import HOSTILE_TEXTS
from tests.fuzz.target import Judge, Target, of_bytes
from tests.server.conftest import tiny_served_model

NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    2**31,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    False,
    [],
    {},
    [1],
    [[1]],
    [2**40, 2**40],
    ["lsh"],
    ["lsh", 1],
    *HOSTILE_TEXTS[:20],
)


@contextmanager
def _checkpoint() -> Iterator[Path]:
    """A complete checkpoint of a small model, to be damaged."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(tiny_served_model(ByteTokenizer()).model, folder)
        yield Path(folder)


@cache
def _content(name: str) -> bytes:
    with _checkpoint() as directory:
        return (directory / name).read_bytes()


def _replacing(name: str, instead_of: str | None = None) -> Callable[[], Any]:
    """Each case is the content of one file of a checkpoint that is whole otherwise."""

    @contextmanager
    def judging() -> Iterator[Judge[bytes]]:
        with _checkpoint() as directory:
            if instead_of is not None:
                (directory / instead_of).unlink()

            def judge(content: bytes) -> None:
                (directory / name).write_bytes(content)
                refused_or_loaded(lambda: load_model(directory, device="cpu", dtype="float32"))

            yield judge

    return judging


def refused_or_loaded(load: Callable[[], object]) -> None:
    """Whatever it is, the error is the one that says which file."""
    try:
        load()
    except CheckpointError as error:
        assert str(error), "the error says nothing"  # noqa: PT017 -- either is right


@contextmanager
def reading_weights(name: str) -> Iterator[Judge[bytes]]:
    """Each case is the content of the one file of weights in a folder."""
    with tempfile.TemporaryDirectory() as folder:

        def judge(content: bytes) -> None:
            (Path(folder) / name).write_bytes(content)
            refused_or_loaded(lambda: list(read_weights(Path(folder))))

        yield judge


# -- config.json


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    """Keys that have other values, are missing, or there twice."""
    config = json.loads(_content("config.json"))
    for key in draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        if draw(st.integers(0, 9)) == 0:
            config.pop(key, None)
        else:
            config[key] = draw(st.sampled_from(VALUES))
    return json.dumps(config).encode()


def _config_seeds() -> list[bytes]:
    return [_content("config.json"), b"[" * 5000, b'{"a":' * 5000, b"9" * 5000]


CONFIGS = Target("configs", "config.json with other values", 5_000, configs, _replacing("config.json"))
CONFIG_FILES = of_bytes(
    "config-files",
    "config.json with bytes changed",
    10_000,
    _config_seeds,
    _replacing("config.json"),
)


# -- model.safetensors


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """A file whose header says something else than what is there."""
    content = _content("model.safetensors")
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    numbers = st.sampled_from([0, 1, -1, 4, len(data), len(data) + 1, 2**31, 2**63, 2**64, 10**30])
    for name in draw(st.lists(st.sampled_from(sorted(header)), min_size=1, max_size=3)):
        what = draw(st.sampled_from(["dtype", "shape", "data_offsets", "gone", "other"]))
        if what == "gone" or not isinstance(header.get(name), dict):
            header.pop(name, None)
        elif what == "dtype":
            header[name]["dtype"] = draw(
                st.sampled_from(["F64", "F16", "BF16", "I8", "BOOL", "F4", "F8_E4M3", "X", "", 1])
            )
        elif what == "other":
            header[name] = draw(st.sampled_from([None, [], {}, "", 0]))
        else:
            header[name][what] = draw(st.lists(numbers, max_size=3))
    packed = json.dumps(header).encode()
    claimed = draw(st.sampled_from([len(packed)] * 6 + [0, 1, len(packed) - 1, 2**31, 2**63, 2**64 - 1]))
    return struct.pack("<Q", claimed) + packed + data


SAFETENSORS = Target(
    "safetensors",
    "headers of safetensors files that lie",
    10_000,
    safetensors,
    lambda: reading_weights("model.safetensors"),
)


def _small_safetensors() -> list[bytes]:
    """So small that most edits hit the header."""
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"format": "pt"}}
    packed = json.dumps(header).encode()
    return [struct.pack("<Q", len(packed)) + packed + bytes(4)]


SAFETENSORS_FILES = of_bytes(
    "safetensors-files",
    "safetensors files with bytes changed",
    20_000,
    _small_safetensors,
    lambda: reading_weights("model.safetensors"),
)
