"""Checkpoints of a training run: one file, replaced in one move, so that a crash leaves the old one or the new one."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

CHECKPOINT_FILE = "checkpoint.pt"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Writes `checkpoint.pt`: tensors and plain values only.

    Raises:
        OSError: it can't be written, e.g. to a full disk; an earlier checkpoint stays as it is.
    """
    target = directory / CHECKPOINT_FILE
    temporary = target.with_suffix(".partial")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = error if isinstance(error, OSError) else error.__context__  # torch's writer hides the file's error
        if isinstance(reason, OSError):
            raise OSError(
                reason.errno, f"the checkpoint can't be written: {reason.strerror or reason}", str(target)
            ) from error
        raise
    temporary.replace(target)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut could undo the move
    finally:
        os.close(folder)


def load_checkpoint(directory: Path) -> dict[str, Any]:
    """Reads `checkpoint.pt`, without ever running code from it; raises ValueError if it can't be read."""
    path = directory / CHECKPOINT_FILE
    if not path.is_file():
        raise ValueError(f"{directory} has no {CHECKPOINT_FILE}: there is no unfinished training to resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint of a training") from error
    return state


def remove_checkpoint(directory: Path) -> None:
    """At the end of a run."""
    (directory / CHECKPOINT_FILE).unlink(missing_ok=True)
