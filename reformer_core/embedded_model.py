"""The model that is shipped inside the package, so that a server needs no other."""

from pathlib import Path

from reformer_core.errors import CheckpointError

_DIRECTORY = Path(__file__).parent / "embedded" / "text"


def embedded_model_path() -> Path:
    """Directory of the embedded text model, in Hugging Face's format.

    Raises:
        CheckpointError: this installation has none.
    """
    if not (_DIRECTORY / "config.json").is_file():
        raise CheckpointError(
            f"{_DIRECTORY} has no config.json: this installation came without the embedded model; "
            "name another model's directory, or train one with `reformer train`"
        )
    return _DIRECTORY
