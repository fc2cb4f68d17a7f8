"""The model that is served, and what the services need to know of it."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from reformer_core import (
    PixelTokenizer,
    ReformerModel,
    Tokenizer,
    document_bytes,
    embedded_model_path,
    load_model,
    load_tokenizer,
)
from reformer_core.checkpoint import model_directory
from reformer_core.document import document_pages
from reformer_core.pages import PAGE_TOKENS, PageLayout
from reformer_server.settings import Settings
from reformer_server.store.manifest import ModelIdentity


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

    @cached_property
    def identity(self) -> ModelIdentity:
        """What tells this model's documents from others'."""
        config = self.model.config.pinned
        names = ("hash_seed", "num_hashes", "num_buckets", "lsh_attn_chunk_length", "lsh_num_chunks_before")
        hashing = json.dumps({name: getattr(config, name) for name in (*names, "lsh_num_chunks_after")}, sort_keys=True)
        dtype = str(self.model.dtype).removeprefix("torch.")
        return ModelIdentity(
            weights=self.model.weights_digest.hex(),
            tokenizer=self.tokenizer.digest.hex(),
            hashing=hashlib.sha256(hashing.encode()).hexdigest(),
            pages=f"{dtype} {PAGE_TOKENS}",
        )

    def page_sizes(self, tokens: int) -> tuple[int, int]:
        """Pages of a document of so many tokens, and bytes a page."""
        layout = PageLayout(self.model.config, self.model.dtype)
        return sum(document_pages(layout, tokens)), layout.page_bytes

    def document_bytes(self, tokens: int, *, with_scores: bool) -> int:
        """Memory of a document of so many tokens."""
        return document_bytes(self.model.config, self.model.dtype, tokens, with_scores=with_scores)


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
