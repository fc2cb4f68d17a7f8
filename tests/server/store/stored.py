"""Small documents and their identities, for the tests of the store."""

from typing import Any

import torch

from reformer_core import Document, ReformerModel
from reformer_core.prefill import Prefill
from reformer_server.store.document_store import DocumentStore
from reformer_server.store.manifest import ContentIdentity, ContentManifest, DocumentRecord, ModelIdentity
from tests.core.tiny import random_tokens, tiny_model, tiny_pool

MODEL = ModelIdentity(weights="a" * 64, tokenizer="b" * 64, hashing="c" * 64, pages="float32 16")


def identity(content: int = 1, tenant: str = "one", model: ModelIdentity = MODEL) -> ContentIdentity:
    return ContentIdentity(tenant=tenant, content_type=1, sha256=f"{content:064x}", model=model)


def small_document(tokens: int = 50, *, scores: bool = True) -> Document:
    model: ReformerModel = tiny_model()
    prefill = Prefill(model, tiny_pool(model), random_tokens(model, tokens), keep_document=True, keep_scores=scores)
    for _ in prefill.slices():
        pass
    assert prefill.document is not None
    return prefill.document


def write(store: DocumentStore, of: ContentIdentity, document: Document) -> ContentManifest:
    """Writes a content, two pages at a time."""
    writer = store.writer(of, document, ("a note",))
    for first in range(0, document.page_count, 2):
        writer.write(document.read_pages(first, first + 2).numpy().data.cast("B"))
    writer.commit()
    writer.discard()
    manifest = store.find(of)
    assert manifest is not None
    return manifest


def pages_of(store: DocumentStore, manifest: ContentManifest) -> torch.Tensor:
    reader = store.reader(manifest)
    try:
        return torch.cat(list(reader.slices()))
    finally:
        reader.close()


def record(document_id: str = "a", of: ContentIdentity | None = None, **fields: Any) -> DocumentRecord:
    values: dict[str, Any] = {
        "document_id": document_id,
        "identity": of or identity(),
        "content_bytes": 5,
        "tokens": 5,
        "memory_bytes": 100,
        "has_scores": False,
        "notes": (),
        "create_time": 1000.0,
        "expire_time": 2000.0,
    }
    return DocumentRecord(**values | fields)
