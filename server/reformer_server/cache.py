"""The documents in the engine's memory, by their contents: who uses them, and which go when room is needed."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reformer_core import Document
from reformer_server.content import ContentKey
from reformer_server.metrics import Metrics


class CachedDocument:
    """A document in memory. While calls use it, it stays, whatever happens to its ids."""

    def __init__(self, key: ContentKey, document: Document, notes: tuple[str, ...], *, stored: bool) -> None:
        """`notes` say what was changed in the content; `stored`: whether the store has it as well."""
        self.key, self.document, self.notes, self.stored = key, document, notes, stored
        self.uses = 0
        self.last_used = 0.0


class DocumentCache:
    """It is used on the event loop only; `free` is how a document is given back to the engine.

    A document is freed when no id stands for its content and no call uses it, and when it is evicted: then the store
    has it, and ids go on standing for it.
    """

    def __init__(
        self, free: Callable[[CachedDocument], None], metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._free, self._metrics, self._clock = free, metrics, clock
        self._cached: dict[ContentKey, CachedDocument] = {}
        self._names: Counter[ContentKey] = Counter()

    def __len__(self) -> int:
        return len(self._cached)

    @property
    def nbytes(self) -> int:
        """Memory of all documents."""
        return sum(cached.document.nbytes for cached in list(self._cached.values()))

    def get(self, key: ContentKey, *, with_scores: bool = False) -> CachedDocument | None:
        """The document of a content, if it is in memory. Retain it before the next await."""
        cached = self._cached.get(key)
        if cached is None or (with_scores and cached.document.scores is None):
            return None
        cached.last_used = self._clock()
        return cached

    def idle_seconds(self, key: ContentKey) -> float | None:
        """Since it was used last, 0 while it is; None: it isn't in memory."""
        cached = self._cached.get(key)
        if cached is None:
            return None
        return 0.0 if cached.uses else self._clock() - cached.last_used

    def put(
        self, key: ContentKey, document: Document, notes: tuple[str, ...] = (), *, stored: bool = False
    ) -> CachedDocument:
        """Takes over a document of the engine, in place of an earlier one; the caller uses it, until `release`.

        One with scores isn't replaced by one without.
        """
        before = self._cached.get(key)
        cached = CachedDocument(key, document, notes, stored=stored)
        if before is not None and before.document.scores is not None and document.scores is None:
            self.retain(before)
            self._free(cached)
            return before
        self._cached[key] = cached
        self.retain(cached)
        if before is not None and before.uses == 0:
            self._free(before)
        return cached

    def retain(self, cached: CachedDocument) -> None:
        """One more user."""
        cached.uses += 1

    def release(self, cached: CachedDocument) -> None:
        """One user less."""
        cached.uses -= 1
        cached.last_used = self._clock()
        self._tidy(cached)

    @contextmanager
    def using(self, cached: CachedDocument) -> Iterator[CachedDocument]:
        """Retains and releases it."""
        self.retain(cached)
        try:
            yield cached
        finally:
            self.release(cached)

    def name(self, key: ContentKey) -> None:
        """One more id stands for the content."""
        self._names[key] += 1

    def unname(self, key: ContentKey) -> None:
        """One id less."""
        self._names[key] -= 1
        if not self._names[key]:
            del self._names[key]
        if key in self._cached:
            self._tidy(self._cached[key])

    def evict(self, nbytes: int) -> int:
        """Frees stored documents that nobody uses, the one that was used longest ago first; returns the bytes freed."""
        freed = 0
        idle = [cached for cached in self._cached.values() if cached.stored and cached.uses == 0]
        for cached in sorted(idle, key=lambda cached: cached.last_used):
            if freed >= nbytes:
                break
            freed += cached.document.nbytes
            del self._cached[cached.key]
            self._free(cached)
            self._metrics.evictions.labels("memory").inc()
        return freed

    def _tidy(self, cached: CachedDocument) -> None:
        is_current = self._cached.get(cached.key) is cached
        if cached.uses == 0 and not (is_current and cached.key in self._names):
            if is_current:
                del self._cached[cached.key]
            self._free(cached)
