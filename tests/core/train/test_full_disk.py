"""A disk that is full when a checkpoint is written."""

import errno
from pathlib import Path

import pytest
import torch

from reformer_core.train.checkpoint import load_checkpoint, save_checkpoint


def test_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / "checkpoint.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="the checkpoint can't be written: No space left") as error:
        save_checkpoint(tmp_path, {"weights": torch.zeros(100_000)})
    assert error.value.errno == errno.ENOSPC
    assert load_checkpoint(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
