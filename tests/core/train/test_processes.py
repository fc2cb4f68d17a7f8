"""Two processes that train one model together, started by torchrun, as a user does; they talk through gloo."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from reformer_core.train.cli import train
from tests.core.train.small_files import assert_same_model, wait_for_step, write_files

pytestmark = pytest.mark.timeout(300)


def start(*arguments: str) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*torchrun, "-m", "reformer_core.train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=200)
    return output


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the model of two processes in `two`."""
    folder = write_files(tmp_path_factory.mktemp("files"))
    two = start(str(folder / "run.toml"), "--output", str(folder / "two"))
    output = end(two)
    assert two.returncode == 0, output
    assert "2 processes" in output
    assert output.count("saved the model in") == 1
    return folder


def test_give_what_one_gives_that_accumulates(files: Path) -> None:
    """With dropout: each part of a batch has its own randomness, whoever learns from it."""
    in_parts = [f"--set=schedule.{phase}.accumulate=2" for phase in range(2)]
    result = CliRunner().invoke(train, [str(files / "run.toml"), "--output", str(files / "one"), *in_parts])
    assert result.exit_code == 0, result.output
    assert_same_model(files / "one", files / "two", tolerance=1e-3)  # as saved, in float16


def test_are_stopped_and_resumed_together(files: Path) -> None:
    """By a signal, and by the loss of one of them; the result is what it would have been."""
    stopped = start(str(files / "run.toml"), "--set", "checkpoint.minutes=1e-6")
    step = wait_for_step(files / "model", stopped)
    stopped.terminate()
    output = end(stopped)
    assert stopped.returncode != 0
    assert "go on with: reformer train --resume" in output

    robbed = start("--resume", str(files / "model"))
    assert wait_for_step(files / "model", robbed, after=step + 1) < 8
    children = Path(f"/proc/{robbed.pid}/task/{robbed.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    output = end(robbed)
    assert robbed.returncode != 0
    assert not (files / "model" / "model.safetensors").exists()

    resumed = start("--resume", str(files / "model"))
    output = end(resumed)
    assert resumed.returncode == 0, output
    assert_same_model(files / "two", files / "model")
