"""A training whose process is killed: what is left is the last checkpoint, and that is enough."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from reformer_core.train.cli import train
from tests.core.train.small_files import assert_same_model, wait_for_step, write_files


@pytest.mark.timeout(300)
def test_goes_on_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_files(tmp_path))
    assert CliRunner().invoke(train, ["run.toml", "--output", "whole"]).exit_code == 0
    killed = subprocess.Popen(
        [sys.executable, "-m", "reformer_core.train", "run.toml", "--set", "checkpoint.minutes=1e-6"],
        stdout=subprocess.DEVNULL,
    )
    try:
        assert wait_for_step(Path("model"), killed) < 8
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert not Path("model/model.safetensors").exists()
    assert CliRunner().invoke(train, ["--resume", "model"]).exit_code == 0
    assert_same_model(Path("whole"), Path("model"))
