"""How busy the server is, in one message."""

from reformer.v1 import model_pb2 as pb
from reformer_server.archive import Archive
from reformer_server.cache import DocumentCache
from reformer_server.chain import Admission
from reformer_server.engine_thread import EngineThread
from reformer_server.settings import Settings
from reformer_server.write_behind import WriteBehind


class Load:
    """Asks each part; called on the event loop."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineThread,
        cache: DocumentCache,
        archive: Archive,
        admission: Admission,
        write_behind: WriteBehind | None,
    ) -> None:
        self._settings, self._engine, self._cache, self._archive = settings, engine, cache, archive
        self._admission, self._write_behind = admission, write_behind

    def message(self) -> pb.GetLoadResponse:
        """As of now; of the engine, as of its latest turn; of the store, as of its last sweep."""
        load, kept = self._engine.load, self._archive.usage
        return pb.GetLoadResponse(
            running_requests=load.running,
            waiting_requests=load.waiting,
            decode_batch_size=load.decode_batch_size,
            documents=load.documents,
            used_page_bytes=load.used_page_bytes,
            total_page_bytes=load.total_page_bytes,
            draining=not self._admission.takes_documents,
            weights_bytes=load.weights_bytes,
            workspace_bytes=load.workspace_bytes,
            document_bytes=self._cache.nbytes,
            stored_documents=len(kept.records),
            stored_bytes=kept.nbytes,
            store_quota_bytes=self._settings.store_quota_bytes or 0,
            unstored_documents=len(self._write_behind or ()),
            running_calls=self._admission.inside,
        )
