"""The models that are shipped inside the package, so that a server needs no other."""

from pathlib import Path

from reformer_core.errors import CheckpointError

PREFIX = "embedded:"
"""`embedded:image` names one of them wherever a model's directory or hub id can stand."""

_MODELS = Path(__file__).parent / "embedded"


def embedded_model_path(name: str = "text") -> Path:
    """Directory of an embedded model, in Hugging Face's format.

    Args:
        name: "text", or "image" for the one that completes pictures.

    Raises:
        CheckpointError: this installation has none of that name.
    """
    directory = _MODELS / name
    models = sorted(config.parent.name for config in _MODELS.glob("*/config.json"))
    if name not in models:
        known = f"there are {', '.join(PREFIX + each for each in models)}" if models else "it came without any"
        raise CheckpointError(
            f"this installation has no embedded model {name!r}: {known}; "
            "name a model's directory, or train one with `reformer train`"
        )
    return directory
