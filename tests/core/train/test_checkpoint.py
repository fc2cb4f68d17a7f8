"""Checkpoints: all or nothing, and never code."""

import errno
from pathlib import Path

import pytest
import torch

from reformer_core.train.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint


def test_on_a_full_disk_the_earlier_one_stays(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / "checkpoint.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="the checkpoint can't be written: No space left") as error:
        save_checkpoint(tmp_path, {"weights": torch.zeros(100_000)})
    assert error.value.errno == errno.ENOSPC
    assert load_checkpoint(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_crash_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, {"step": 1})

    def crash(state: object, file: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, {"step": 2})
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_missing_or_damaged_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no unfinished training to resume"):
        load_checkpoint(tmp_path)
    for content in (b"", b"nonsense"):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
            load_checkpoint(tmp_path)
    remove_checkpoint(tmp_path)
    remove_checkpoint(tmp_path)


def test_no_code_is_run_from_it(tmp_path: Path) -> None:
    torch.save({"call": Path}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(tmp_path)
