"""From what a user calls a model, a directory or a Hugging Face hub id, to a directory."""

import re
from pathlib import Path

from reformer_core.embedded_model import PREFIX, embedded_model_path
from reformer_core.errors import CheckpointError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)

# The second set is fetched only if the first brought no weights: many repositories hold the same weights twice.
_FILES = (
    ["config.json", "spiece.model", "pixels.json", "model*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model*.bin*"],
)


def model_directory(source: str | Path) -> Path:
    """The directory itself if it exists; else, if `source` can be a hub id, the repository's local copy.

    Args:
        source: a directory; `embedded:` and the name of an embedded model; or a hub id such as
            "google/reformer-crime-and-punishment". A repository that isn't in the local cache of `huggingface_hub` is
            downloaded.

    Raises:
        CheckpointError: neither a directory nor a repository that can be had.
    """
    if str(source).startswith(PREFIX):
        return embedded_model_path(str(source).removeprefix(PREFIX))
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is no directory; expected a model directory with config.json and weights")
    if not _HUB_ID.fullmatch(str(source)):
        raise CheckpointError(
            f"{path}: there is no such directory; expected a model directory, or a hub id like org/name, "
            "or embedded:image"
        )
    from huggingface_hub import snapshot_download  # costs a second, which only hub ids have to pay

    directory = path
    try:
        for patterns in _FILES:
            directory = Path(snapshot_download(str(source), allow_patterns=patterns))
            if any(directory.glob("*.safetensors")):
                break
    except (OSError, ValueError) as error:  # its errors are these: no network, no such repository, no access
        raise CheckpointError(
            f"{source}: there is no such directory, and as a hub id it can't be had: {type(error).__name__}: {error}"
        ) from error
    return directory
