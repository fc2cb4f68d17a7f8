"""What turns the engine's turns into plain calls: collected events, and a session that is used directly."""

from collections import deque
from typing import TYPE_CHECKING

import torch

from reformer_core.events import Event
from reformer_core.extend import extend
from reformer_core.session import Session

if TYPE_CHECKING:
    from reformer_core.engine import Engine


class Collected:
    """A sink with room for everything, for a caller that takes the turns itself."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()

    def ready(self) -> bool:
        """Always."""
        return True

    def emit(self, event: Event) -> None:
        """Keeps the event."""
        self.events.append(event)


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
        """
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
