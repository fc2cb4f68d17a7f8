"""Writes a checkpoint."""

import json
import os
import tempfile
from pathlib import Path
from typing import Protocol

from safetensors.torch import save_file

from reformer_core.checkpoint.loading import CONFIG_FILE
from reformer_core.checkpoint.weight_names import stored_name
from reformer_core.model import ReformerModel

WEIGHTS_FILE = "model.safetensors"


class SavesItself(Protocol):
    """What `save_model` needs of a tokenizer."""

    def save(self, directory: Path) -> None:
        """Writes its files."""
        ...


def save_model(model: ReformerModel, directory: str | Path, tokenizer: SavesItself | None = None) -> None:
    """Writes a checkpoint that `load_model` and transformers load, in the model's dtype.

    Every file is complete before it takes its place, and `config.json` comes last: a crash leaves no half-written file,
    and no directory that looks like a model but isn't one.

    Args:
        directory: made if it isn't there; other files in it stay.
        tokenizer: saved with the model.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    weights = {stored_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as temporary:
        partial = Path(temporary)
        metadata = {"format": "pt"}  # without it, older versions of transformers refuse the file
        save_file(weights, partial / WEIGHTS_FILE, metadata=metadata)
        if tokenizer is not None:
            tokenizer.save(partial)
        (partial / CONFIG_FILE).write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
        readable = (partial / CONFIG_FILE).stat().st_mode  # safetensors lets nobody else read what it writes
        for path in sorted(partial.iterdir(), key=lambda path: path.name == CONFIG_FILE):
            path.chmod(readable)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(target / path.name)
