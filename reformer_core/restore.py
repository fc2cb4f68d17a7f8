"""A document that was kept elsewhere comes back: its pages are written as they arrive, slice by slice."""

from collections.abc import Iterator
from typing import Protocol

import torch

from reformer_core.admission import Needs
from reformer_core.document import Document, arrange_pages, document_pages
from reformer_core.events import DocumentReady, Sink
from reformer_core.requests import Request, Resources


class PageSource(Protocol):
    """Where a document's pages come from, in the order of `Document.pages`."""

    def take(self) -> torch.Tensor | None:
        """The next pages, uint8 [k, page bytes], k ≥ 1; None: they have not arrived yet.

        Called on the engine's thread, and must not block. Whatever it raises ends the request. The last pages must not
        be given out before it is known that all were whole.
        """
        ...


class RestoreRequest(Request):
    """Writes a document's pages and hands it over."""

    def __init__(
        self,
        resources: Resources,
        token_ids: torch.Tensor,
        scores: torch.Tensor | None,
        source: PageSource,
        sink: Sink,
        deadline: float | None,
    ) -> None:
        pages = sum(document_pages(resources.pool.layout, len(token_ids)))
        super().__init__(resources, Needs(pages, leaves_document=True), len(token_ids), sink, deadline)
        self.document: Document | None = None
        """Handed over to the reader."""
        self._token_ids, self._scores, self._source = token_ids, scores, source
        self._pages: list[int] = []

    def begin(self) -> Iterator[bool]:
        self._pages = self.resources.pool.allocate(self.needs.pages)
        return self._work()

    def free(self) -> None:
        if self.document is None:
            self.resources.pool.release(self._pages)
        self._pages = []

    def _work(self) -> Iterator[bool]:
        pool, pages, done = self.resources.pool, torch.tensor(self._pages), 0
        while done < len(pages):
            content = self._source.take()
            if content is None:
                yield False
                continue
            pool.write_raw(pages[done : done + len(content)], content)
            done += len(content)
            self.tell_progress(done / len(pages))
            yield True
        token_pages, order_pages, state_pages = arrange_pages(pool.layout, self._pages, self.tokens)
        document = Document(pool, self._token_ids, token_pages, order_pages, state_pages, scores=self._scores)
        self.sink.emit(DocumentReady(document))
        self.document = document
