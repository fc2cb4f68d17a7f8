"""Requests of the engine that end with a document: prefills and restores."""

from collections.abc import Callable, Sequence

from reformer_core import Document, Engine, Request
from reformer_core.events import DocumentReady, Event, Progress
from reformer_server.call_facts import Reading
from reformer_server.engine_thread import EngineThread
from reformer_server.events import EventStream
from reformer_server.joint import Report


async def obtain_document(
    engine: EngineThread,
    submit: Callable[[Engine, EventStream], Request],
    report: Report,
    saw: Callable[[Sequence[Event]], None] = lambda events: None,
    reading: Reading = "prefill",
) -> Document:
    """Submits the request and waits for its document, which is the caller's. Raises what the engine has against it.

    Args:
        report: is told the progress.
        saw: is told all events.
        reading: how it is obtained.
    """
    document: Document | None = None
    try:
        async with engine.request(submit, reading) as stream:
            async for events in stream.batches():
                saw(events)
                for event in events:
                    if isinstance(event, Progress):
                        report(event)
                    elif isinstance(event, DocumentReady):
                        document = event.document
    except BaseException:
        if document is not None:
            ready = document
            engine.post(lambda engine: ready.close())
        raise
    assert document is not None, "the engine finished without a document"
    return document
