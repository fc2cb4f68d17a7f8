"""Two processes that train one model together, started by torchrun, as a user does; they talk through gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.core.train.small_files import assert_same_model, write_files

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def start(folder: Path, *arguments: str, launcher: list[str] = TWO) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, "reformer_core.train", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(folder: Path, *arguments: str, launcher: list[str] = TWO) -> str:
    process = start(folder, *arguments, launcher=launcher)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


def test_give_what_one_gives_that_accumulates(files: Path) -> None:
    """With dropout: each part of a batch has its own randomness, whoever learns from it."""
    output = run(files, "run.toml", "--output", "two")
    assert "2 processes" in output
    assert output.count("saved the model in") == 1
    in_parts = [f"--set=schedule.{phase}.accumulate=2" for phase in range(2)]
    run(files, "run.toml", "--output", "one", *in_parts, launcher=[sys.executable, "-m"])
    assert_same_model(files / "one", files / "two", tolerance=1e-3)  # as saved in float16
    losses = [
        [json.loads(line)["loss"] for line in (files / name / "train.jsonl").read_text().splitlines() if "loss" in line]
        for name in ("one", "two")
    ]
    assert losses[0][-1] == pytest.approx(losses[1][-1], abs=2e-4)


def test_are_stopped_and_resumed_together(files: Path) -> None:
    longer = ["run.toml", "--set", "schedule.1.tokens=6400", "--set", "checkpoint.minutes=1e-6"]
    run(files, *longer, "--output", "whole")
    stopped = start(files, *longer)
    try:
        while not (files / "model" / "checkpoint.pt").exists():
            assert stopped.poll() is None
            time.sleep(0.02)
    finally:
        stopped.send_signal(signal.SIGTERM)
        stopped.communicate(timeout=60)
    assert 1 <= torch.load(files / "model" / "checkpoint.pt", weights_only=True)["trainer"]["step"] < 100
    run(files, "--resume", "model")
    assert_same_model(files / "whole", files / "model")


def test_a_lost_process_ends_all(files: Path) -> None:
    training = start(files, "run.toml", "--set", "schedule.1.tokens=100_000_000", "--set", "checkpoint.minutes=1e-6")
    while not (files / "model" / "checkpoint.pt").exists():
        assert training.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    output, _ = training.communicate(timeout=60)
    assert training.returncode not in (0, None)
    assert "FAILED" in output
    assert not (files / "model" / "model.safetensors").exists()
