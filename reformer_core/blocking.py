"""What makes plain calls of the engine's turns: collected events, and a session that is used directly."""

from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import torch

from reformer_core.errors import OutOfMemoryError
from reformer_core.events import Event, Failed, Progress
from reformer_core.extend import extend
from reformer_core.requests import Request
from reformer_core.session import Session

if TYPE_CHECKING:
    from reformer_core.engine import Engine


class Collected:
    """A sink with room for everything, for a caller that takes the turns itself."""

    owner = None

    def __init__(self) -> None:
        self.events: deque[Event] = deque()

    def ready(self) -> bool:
        """Always."""
        return True

    def emit(self, event: Event) -> None:
        """Keeps the event."""
        self.events.append(event)

    def until_over(
        self, engine: "Engine", request: Request, on_progress: Callable[[Progress], None] | None = None
    ) -> Generator[Event, None, None]:
        """The request's events, turn after turn; raises its error. Leaving early cancels it."""
        try:
            while True:
                while self.events:
                    event = self.events.popleft()
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Progress) and on_progress is not None:
                        on_progress(event)
                    yield event
                if request.phase == "done":
                    return
                if not engine.step() and not self.events:
                    # Nobody else takes turns meanwhile: what it waits for never comes.
                    pages = engine.pool.layout.page_bytes
                    raise OutOfMemoryError(request.needs.pages * pages, engine.pool.free_pages * pages)
        finally:
            engine.cancel(request)


class OpenSession:
    """A document and what is appended to it, used directly, between the engine's turns. A context manager."""

    def __init__(self, engine: "Engine", session: Session) -> None:
        self._engine, self._session = engine, session

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self._session.length

    def extend(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Appends tokens, int [m]; each sees what a full pass over all tokens up to it would show its layers.

        Returns:
            float32 [m, vocab], CPU: logits of the token after each.

        Raises:
            InvalidTokensError, TooManyTokensError: the tokens can't be appended; nothing is.
            OutOfMemoryError: no pages; what fitted is appended.
            ValueError: the session is closed.
        """
        if self._session.closed:
            raise ValueError("the session is closed")
        self._engine.model.check_token_ids(token_ids)
        with torch.inference_mode():
            return torch.cat([logits.cpu() for logits in extend(self._engine.model, self._session, token_ids)])

    def close(self) -> None:
        """Frees the session; idempotent."""
        self._engine.close_session(self._session)

    def __enter__(self) -> "OpenSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
