"""Admission: what there is room for, when a request is submitted and when it may begin.

A request begins only when there is room for all that it will ever need: later, nothing can be missing.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

from reformer_core.document import Document
from reformer_core.errors import OutOfMemoryError
from reformer_core.pages import PagePool
from reformer_core.session import Session


@dataclass(frozen=True)
class Needs:
    """What one request takes."""

    pages: int
    """Pages of the pool, to its end."""
    workspace_bytes: int = 0
    """Memory besides the pages, while it reads."""
    leaves_document: bool = False
    """Whether its pages are in use beyond its end."""

    def after_reading(self) -> "Needs":
        """What it still takes when all is read."""
        return replace(self, workspace_bytes=0)


@dataclass(frozen=True)
class Room:
    """Amounts of everything that requests share."""

    requests: int
    pages: int
    workspace_bytes: int
    short_workspace_bytes: int

    def __sub__(self, other: "Room") -> "Room":
        return Room(*(mine - its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def holds(self, other: "Room") -> bool:
        """Whether there is enough of everything that the other takes any of."""
        return all(its == 0 or its <= mine for mine, its in zip(astuple(self), astuple(other), strict=True))


class Admission:
    """Counts what is held, and knows what stays held when all requests are over: documents and open sessions.

    Sequences that are short enough are read in a workspace of their own, so that they needn't wait for a long one.
    """

    def __init__(self, pool: PagePool, max_running: int, workspace_bytes: int, short_workspace_bytes: int) -> None:
        """Args:
        max_running: requests and open sessions at a time.
        workspace_bytes: for the sequences that take more than `short_workspace_bytes`.
        """
        self._pool = pool
        self._all = Room(max_running, pool.total_pages, workspace_bytes, short_workspace_bytes)
        self._documents: set[Document] = set()
        self.open_sessions: set[Session] = set()

    @property
    def documents(self) -> set[Document]:
        """Documents that their owners have not closed."""
        self._documents = {document for document in self._documents if not document.closed}
        return self._documents

    def keep(self, document: Document) -> None:
        """Counts a document until its owner closes it."""
        self._documents.add(document)

    def free(self, running: Iterable[Needs]) -> Room:
        """What is free now."""
        free = replace(self._all, requests=self._all.requests - len(self.open_sessions), pages=self._pool.free_pages)
        for needs in running:
            free -= replace(self.room_for(needs), pages=0)  # the pool counts pages itself
        return free

    def room_for(self, needs: Needs) -> Room:
        """What a request takes."""
        workspace = needs.workspace_bytes
        if workspace <= self._all.short_workspace_bytes:
            return Room(1, needs.pages, 0, workspace)
        return Room(1, needs.pages, workspace, 0)

    def check(self, needs: Needs, unfinished: Iterable[Needs]) -> None:
        """Checks that a request can begin once all that were submitted before it are over.

        Raises:
            OutOfMemoryError: documents, there or to come, leave no room for it.
        """
        if needs.workspace_bytes > self._all.workspace_bytes:
            raise OutOfMemoryError(needs.workspace_bytes, self._all.workspace_bytes, fits_when_idle=False)
        documents = self.documents | {session.document for session in self.open_sessions}
        kept = sum(document.page_count for document in documents)
        kept += sum(len(session.pages) for session in self.open_sessions)
        kept += sum(other.pages for other in unfinished if other.leaves_document)
        if needs.pages > self._all.pages - kept:
            size = self._pool.layout.page_bytes
            free = (self._all.pages - kept) * size
            raise OutOfMemoryError(needs.pages * size, free, fits_when_idle=needs.pages <= self._all.pages)
