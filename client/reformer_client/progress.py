"""Tells the user how far the server is."""

import inspect
from collections.abc import Awaitable, Callable

from reformer.v1 import document_pb2
from reformer_client import messages
from reformer_client.results import Progress

OnProgress = Callable[[Progress], object] | Callable[[Progress], Awaitable[object]]
"""Called (and awaited, if need be) with each report of progress; an exception in it ends the call."""


async def report(on_progress: OnProgress | None, message: document_pb2.Progress) -> None:
    """Tells the user, if they want to know."""
    if on_progress is not None and inspect.isawaitable(result := on_progress(messages.progress(message))):
        await result
