"""A training whose process is killed: what is left is the last checkpoint, and that is enough."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.core.train.small_files import assert_same_model, write_files


def test_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    write_files(tmp_path)
    command = [sys.executable, "-m", "reformer_core.train"]
    often = ["run.toml", "--set", "checkpoint.minutes=1e-6", "--set", "schedule.1.tokens=4000"]
    whole = subprocess.run([*command, *often, "--output", "whole"], cwd=tmp_path, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr

    killed = subprocess.Popen([*command, *often], cwd=tmp_path, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "model" / "checkpoint.pt"
    try:
        while not checkpoint.exists():
            assert killed.poll() is None
            time.sleep(0.01)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert 1 <= torch.load(checkpoint, weights_only=True)["trainer"]["step"] < 60

    resumed = subprocess.run([*command, "--resume", "model"], cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_model(tmp_path / "whole", tmp_path / "model")
