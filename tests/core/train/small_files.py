"""Files of a small run, as a user has them, for the tests of whole runs."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy
import torch

from reformer_core import load_model
from reformer_core.train.checkpoint import CHECKPOINT_FILE, load_checkpoint
from tests.core.train.small import HYPERPARAMETERS, WORDS, pixels

RUN = """
output = "model"
precision = "float32"
[model]
config = "config.json"
[data]
texts = ["words.txt"]
validation = ["held out.txt"]
vocab_size = 300
[[schedule]]
tokens = 320
lengths = [16]
batch_tokens = 64
[[schedule]]
tokens = 384
lengths = [32, 64]
batch_tokens = 128
num_hashes = 1
[card]
title = "Foxes"
data_licence = "none, it is a pangram"
"""

IMAGES = """
output = "model"
precision = "float32"
[model]
attn_layers = ["local", "lsh"]
hidden_size = 32
axial_pos_embds_dim = [12, 12, 8]
[data]
images = "images.npz"
validation_images = "images.npz"
augment = ["flip"]
[[schedule]]
steps = 3
batch_tokens = 200
"""


def write_files(folder: Path) -> Path:
    """Texts, images, a configuration, and two runs of them: `run.toml` and `images.toml`."""
    (folder / "words.txt").write_text(WORDS * 60)
    (folder / "held out.txt").write_text("a lazy fox quickly jumps over.\n" * 10)
    (folder / "config.json").write_text(json.dumps({**HYPERPARAMETERS, "is_decoder": True}))
    numpy.savez(folder / "images.npz", train=pixels(12), validation=pixels(3))
    (folder / "run.toml").write_text(RUN)
    (folder / "images.toml").write_text(IMAGES)
    return folder


def assert_same_model(one: Path, other: Path, tolerance: float = 0.0) -> None:
    """Two model directories hold the same weights."""
    expected, found = (load_model(path, device="cpu", dtype="float32").state_dict() for path in (one, other))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=tolerance, msg=name)


def wait_for_step(directory: Path, training: subprocess.Popen[Any], after: int = 0) -> int:
    """Waits until a checkpoint of a step after that one is there; gives its step."""
    while True:
        assert training.poll() is None
        if (directory / CHECKPOINT_FILE).exists():
            step = load_checkpoint(directory)["trainer"]["step"]
            if step > after:
                return int(step)
        time.sleep(0.02)
