"""The model that is served, and what the services need to know of it."""

from dataclasses import dataclass
from pathlib import Path

from reformer_core import PixelTokenizer, ReformerModel, Tokenizer, embedded_model_path, load_model, load_tokenizer
from reformer_core.checkpoint import model_directory
from reformer_server.settings import Settings


@dataclass(frozen=True)
class ServedModel:
    """A loaded model, its tokenizer, and the name that clients see: its folder's, or its hub id."""

    name: str
    model: ReformerModel
    tokenizer: Tokenizer

    @property
    def max_tokens(self) -> int:
        """Positions: document, prompt and continuation together."""
        return self.model.config.max_tokens

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self.model.config.vocab_size

    @property
    def pixels(self) -> PixelTokenizer | None:
        """The tokenizer of a model that reads pictures; None: it reads text."""
        return self.tokenizer if isinstance(self.tokenizer, PixelTokenizer) else None


def load_served_model(settings: Settings) -> ServedModel:
    """Loads what the settings name. Takes a while. Raises CheckpointError, InvalidParameterError."""
    source = settings.model or embedded_model_path()
    directory = model_directory(source)
    model = load_model(
        directory,
        device=settings.device,
        dtype=settings.dtype,
        num_hashes=settings.num_hashes,
        hash_seed=settings.hash_seed,
    )
    name = directory.resolve().name if directory == Path(source) else str(source)
    return ServedModel(name, model, load_tokenizer(directory))
