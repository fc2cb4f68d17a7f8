"""A training whose process is killed: what is left is the last checkpoint, and that is enough."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.train.small_files import assert_same_model, wait_for_step, write_files

TRAIN = [sys.executable, "-m", "reformer_core.train"]


@pytest.mark.timeout(300)
def test_goes_on_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_files(tmp_path))
    # All in processes of their own: sums are rounded alike only with the same number of threads.
    subprocess.run([*TRAIN, "run.toml", "--output", "whole"], check=True, stdout=subprocess.DEVNULL)
    killed = subprocess.Popen(
        [*TRAIN, "run.toml", "--set", "checkpoint.minutes=1e-6"],
        stdout=subprocess.DEVNULL,
    )
    try:
        assert wait_for_step(Path("model"), killed) < 8
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not Path("model/model.safetensors").exists()
    subprocess.run([*TRAIN, "--resume", "model"], check=True, stdout=subprocess.DEVNULL)
    assert_same_model(Path("whole"), Path("model"))
