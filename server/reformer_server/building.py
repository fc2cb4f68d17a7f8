"""The server's two large parts, made as the settings say, and what is wrong with those in their words."""

from typing import TYPE_CHECKING

from reformer_core import Engine
from reformer_core.errors import OutOfMemoryError, TooManyTokensError
from reformer_server.archive import Archive
from reformer_server.errors import StoreUnavailableError
from reformer_server.metrics import Metrics
from reformer_server.served_model import ServedModel
from reformer_server.settings import Settings, SettingsError
from reformer_server.store.document_store import DocumentStore
from reformer_server.store_archive import StoreArchive

if TYPE_CHECKING:
    from reformer_server.tracing import Traces


def open_traces(settings: Settings) -> "Traces | None":
    """Where traces go, as the settings say. Raises SettingsError."""
    if settings.traces is None:
        return None
    try:
        from reformer_server.tracing import Traces
    except ModuleNotFoundError as error:
        raise SettingsError(f"traces: {error.name} isn't installed; pip install 'reformer-serve[telemetry]'") from None
    return Traces(settings.traces)


def open_archive(settings: Settings, model: ServedModel, metrics: Metrics) -> Archive:
    """Where documents are kept, as the settings say. Raises SettingsError."""
    url = settings.store_url
    if url is None:
        return Archive(model.identity)
    try:
        store = DocumentStore(url)
    except StoreUnavailableError as error:
        raise SettingsError(
            f"store: {url} can't be used: {error.reason}; set --store to a folder, an fsspec URL or none"
        ) from error
    return StoreArchive(model.identity, store, settings.store_quota_bytes, metrics)


def build_engine(settings: Settings, model: ServedModel) -> Engine:
    """The engine, as the settings say. Raises SettingsError."""
    try:
        return Engine(
            model.model,
            model.tokenizer,
            memory_bytes=settings.memory_bytes,
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            max_text_tokens=settings.max_text_tokens,
        )
    except TooManyTokensError as error:
        raise SettingsError(f"max-text: {error}; lower --max-text") from error
    except OutOfMemoryError as error:
        text, or_lower = "the shortest document", ""
        if settings.max_text_tokens is not None:
            text, or_lower = f"scoring {settings.max_text_tokens:,} tokens", "--max-text or "
        raise SettingsError(
            f"memory: {error.free_bytes:,} bytes aren't enough for the weights, {settings.max_running} sessions "
            f"and {text}, which take {error.needed_bytes:,}; raise --memory or lower {or_lower}--max-running"
        ) from error
