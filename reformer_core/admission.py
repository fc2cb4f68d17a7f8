"""Admission: what there is room for, when a request is submitted and when it may begin.

A request begins only when there is room for all that it will ever need: later, nothing can be missing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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


Room = tuple[int, ...]
"""Amounts of everything that requests share: requests, pages, and bytes of each workspace."""


class Admission:
    """Counts what is held, and knows what stays held when all requests are over: documents and open sessions."""

    def __init__(self, pool: PagePool, max_running: int, workspaces: Sequence[int]) -> None:
        """Args:
        max_running: requests and open sessions at a time.
        workspaces: bytes, descending. What is read takes its bytes from the smallest one that is large enough.
        """
        self._pool, self._max_running, self._workspaces = pool, max_running, tuple(workspaces)
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
        free = (self._max_running - len(self.open_sessions), self._pool.total_pages, *self._workspaces)
        for needs in running:
            free = minus(free, self.room_for(needs))
        return (free[0], self._pool.free_pages, *free[2:])  # the pool counts pages itself

    def room_for(self, needs: Needs) -> Room:
        """What a request takes."""
        workspace = max(number for number, size in enumerate(self._workspaces) if needs.workspace_bytes <= size)
        bytes_of_each = [needs.workspace_bytes if number == workspace else 0 for number in range(len(self._workspaces))]
        return (1, needs.pages, *bytes_of_each)

    def check(self, needs: Needs, unfinished: Iterable[Needs]) -> None:
        """Checks that a request can begin once all that were submitted before it are over.

        Raises:
            OutOfMemoryError: documents, there or to come, leave no room for it.
        """
        if needs.workspace_bytes > self._workspaces[0]:
            raise OutOfMemoryError(needs.workspace_bytes, self._workspaces[0], fits_when_idle=False)
        total, size = self._pool.total_pages, self._pool.layout.page_bytes
        room = self.pages_not_kept(unfinished)
        if needs.pages > room:
            raise OutOfMemoryError(needs.pages * size, room * size, fits_when_idle=needs.pages <= total)

    def pages_not_kept(self, unfinished: Iterable[Needs]) -> int:
        """Pages that are free when these requests are over, as long as nobody closes a document."""
        documents = self.documents | {session.document for session in self.open_sessions}
        kept = sum(document.page_count for document in documents)
        kept += sum(len(session.pages) for session in self.open_sessions)
        kept += sum(other.pages for other in unfinished if other.leaves_document)
        return self._pool.total_pages - kept


def minus(free: Room, taken: Room) -> Room:
    """What is left; negative where more is wanted than there is."""
    return tuple(mine - its for mine, its in zip(free, taken, strict=True))


def holds(free: Room, taken: Room) -> bool:
    """Whether there is enough of everything that is taken."""
    return all(its == 0 or its <= mine for mine, its in zip(free, taken, strict=True))
