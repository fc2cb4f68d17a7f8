"""What an id stands for, and a document in use."""

import time
from dataclasses import dataclass, field

from reformer_core import Document
from reformer_server.content import ContentKey, DocumentName


@dataclass(eq=False)
class Entry:
    """What an id stands for."""

    name: DocumentName
    key: ContentKey
    content_bytes: int
    tokens: int
    memory_bytes: int
    has_scores: bool
    notes: tuple[str, ...]
    create_time: float  # Unix time
    expire_time: float
    stored: bool = False
    """Whether the store has it, so that it outlives this process."""
    checked: float = field(default_factory=time.monotonic)
    """When the store was asked last; also counted from its beginning here."""


@dataclass(frozen=True)
class InUse:
    """A document for the length of a call, and whether this call had to wait for the store."""

    document: Document
    restored: bool
