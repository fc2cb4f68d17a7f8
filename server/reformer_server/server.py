"""The server: its parts, put together, started, and stopped in order."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from reformer.v1 import admin_pb2, document_pb2, inference_pb2, model_pb2
from reformer.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from reformer.v1.document_pb2_grpc import add_DocumentServiceServicer_to_server
from reformer.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from reformer.v1.model_pb2_grpc import add_ModelServiceServicer_to_server
from reformer_core import Engine, SamplingParams
from reformer_server import building
from reformer_server.access import Access
from reformer_server.admin_service import AdminService
from reformer_server.cache import CachedDocument, DocumentCache
from reformer_server.calls import Around, CallInterceptor
from reformer_server.chain import Admission, counting, errors_to_status, logged
from reformer_server.connections import channel_options
from reformer_server.content import Encoder
from reformer_server.document_service import DocumentService
from reformer_server.documents import DocumentRegistry
from reformer_server.engine_thread import EngineThread
from reformer_server.errors import EngineStoppedError
from reformer_server.gauges import gauges_of
from reformer_server.health import Health
from reformer_server.inference_service import InferenceService
from reformer_server.load import Load
from reformer_server.metrics import Metrics, MetricsPort
from reformer_server.model_service import ModelService
from reformer_server.prefills import Prefills
from reformer_server.quotas import Quotas
from reformer_server.restores import Restores
from reformer_server.served_model import ServedModel
from reformer_server.settings import Settings
from reformer_server.stopping import Stopping
from reformer_server.store_archive import StoreArchive
from reformer_server.unknown_methods import grpc_server
from reformer_server.uploads import Uploads
from reformer_server.version import VERSION
from reformer_server.write_behind import WriteBehind

SWEEP_SECONDS = 1.0
WRITTEN_SECONDS = 10.0  # that a request waits for the store to take a document, whose memory it needs
STOP_SECONDS = 1.0  # for calls to send their last status after they were told to end

SERVICES = tuple(
    service.full_name
    for module in (admin_pb2, document_pb2, inference_pb2, model_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)

logger = logging.getLogger(__name__)


class Server:
    """Made, started, awaited and stopped on one event loop."""

    def __init__(
        self,
        settings: Settings,
        model: ServedModel,
        build_engine: Callable[[], Engine] | None = None,
        access: Access | None = None,
        links: Sequence[Around] = (),
    ) -> None:
        """`build_engine` runs on the engine's thread. Default: an Engine, and access, as the settings say.

        `links` go around each call, outside of all others: they see in its facts how it ended.

        Raises SettingsError.
        """
        self.settings = settings
        self.model = model
        self.access = access or Access(settings)
        self.metrics = Metrics()
        self.port = 0
        self.metrics_port = 0
        self.engine = EngineThread(
            build_engine or partial(building.build_engine, settings, model), self.metrics, settings.max_waiting
        )
        self._encoder = Encoder(model.tokenizer)
        self.uploads = Uploads(
            max_content_bytes=settings.max_content_bytes,
            memory_bytes=settings.upload_memory_bytes,
            retention_seconds=settings.upload_retention_seconds,
        )
        self.cache = DocumentCache(self._free, self.metrics)
        self.archive = building.open_archive(settings, model, self.metrics)
        self.restores = Restores(model, self.engine, self.archive, self.cache, self.metrics)
        self.documents = DocumentRegistry(self.uploads, self.cache, self.archive, self.restores, self.metrics)
        self.write_behind: WriteBehind | None = None
        if isinstance(self.archive, StoreArchive):
            self.write_behind = WriteBehind(
                self.engine, self.archive, self.cache, self.documents.holds, self.documents.lose, self.metrics
            )
            self.documents.persist = self.write_behind.persist
        self.engine.make_room = self._make_room
        self.engine.seconds_until_room = self.documents.seconds_until_one_ends
        self._admission = Admission()
        self._quotas = Quotas()
        self._health = Health(SERVICES, self._computes)
        self.metrics.serving.set_function(lambda: float(self._health.ready))
        self._stopping = Stopping(
            self.engine, self._admission, self._health, self.write_behind, lambda: self.settings.drain_grace_seconds
        )
        chain = (
            *links,
            logged,
            counting(self.metrics),
            errors_to_status,
            *self.access.links,
            self._admission.around,
            self._quotas.around,
        )
        self._grpc = grpc_server([CallInterceptor(chain)], channel_options(settings.keepalive_seconds))
        self._add_services()
        self._metrics_port: MetricsPort | None = None
        self._background: list[asyncio.Task[None]] = []
        self._told_to_stop = asyncio.Event()
        self._deaf: asyncio.Task[object] | None = None

    def _add_services(self) -> None:
        settings, model, engine, encoder = self.settings, self.model, self.engine, self._encoder
        documents, cache, uploads, metrics = self.documents, self.cache, self.uploads, self.metrics
        prefills = Prefills(model, engine, encoder, cache, self.archive, self.restores, metrics, self._quotas)
        add_DocumentServiceServicer_to_server(
            DocumentService(
                settings, model, engine, documents, cache, uploads, prefills, metrics, self._stopping.before_told
            ),
            self._grpc,
        )
        add_InferenceServiceServicer_to_server(
            InferenceService(settings, model, engine, encoder, documents, uploads, metrics, self._quotas), self._grpc
        )
        load = Load(settings, engine, cache, self.archive, self._admission, self.write_behind)
        add_ModelServiceServicer_to_server(ModelService(settings, model, encoder, load), self._grpc)
        add_AdminServiceServicer_to_server(AdminService(documents, cache, self._stopping.begin), self._grpc)
        self._health.add_to(self._grpc)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)

    async def start(self) -> None:
        """Listens, warms up, and then says that it serves. Raises what is in the way; `stop` is due all the same."""
        settings = self.settings
        await self.engine.start()
        self.metrics.watch(gauges_of(self))
        self.metrics.build_info(version=VERSION, model=self.model.name, torch=torch.__version__)
        probes = {"/livez": lambda: self._health.alive, "/readyz": lambda: self._health.ready}
        self._metrics_port = MetricsPort(settings.host, settings.metrics_port, self.metrics.registry, probes)
        self.metrics_port = self._metrics_port.port
        await self._health.started()
        self.port = self.access.listen(self._grpc)
        await self._grpc.start()
        background = (self._sweep(), self.archive.keep_house(), self.access.watch())
        self._background = [asyncio.create_task(work) for work in background]
        await self._warm_up()
        await self._health.look()
        self._background.append(asyncio.create_task(self._health.watch()))

    def tell_to_stop(self) -> None:
        """Ends `until_stopped`; a second time, ends the grace period too."""
        if self._told_to_stop.is_set():
            self._stopping.hurry()
        self._told_to_stop.set()

    async def until_stopped(self) -> None:
        """Returns when it is told to stop. Raises EngineStoppedError if the engine dies first, and what ended gRPC."""
        told = asyncio.create_task(self._told_to_stop.wait())
        died = asyncio.create_task(self.engine.ended.wait())
        # Never cancelled: gRPC would take that for the end of what it waits for itself when it is stopped.
        deaf = self._deaf = asyncio.create_task(self._grpc.wait_for_termination())
        await asyncio.wait({told, died, deaf}, return_when=asyncio.FIRST_COMPLETED)
        for task in (told, died):
            task.cancel()
        if self.engine.error is not None:
            raise EngineStoppedError from self.engine.error
        if deaf.done():
            deaf.result()

    async def stop(self) -> None:
        """In order: admit nothing new, let calls finish within the grace period, end the rest, then the parts."""
        await self._stopping.until_idle()
        await self._grpc.stop(STOP_SECONDS)
        for task in self._background:
            task.cancel()
        if self.write_behind is not None and (lost := self.write_behind.stop()):
            logger.warning("%d documents are not in the store", lost)
        await self.engine.stop()
        self.archive.close()
        self._encoder.close()
        if self._metrics_port is not None:
            await self._metrics_port.stop()

    def _free(self, cached: CachedDocument) -> None:
        self.engine.post(lambda engine: cached.document.close())
        if not cached.stored:
            self.archive.settle(cached.key)

    async def _make_room(self, nbytes: int) -> bool:
        """Expired documents first, then those that the store has; if there are none, what it will have next."""
        if self.documents.sweep() or self.cache.evict(nbytes):
            return True
        if self.write_behind is None or not await self.write_behind.next_written(WRITTEN_SECONDS):
            return False
        return self.cache.evict(nbytes) > 0

    async def _warm_up(self) -> None:
        """One short generation, so that the first client doesn't pay for what is made at first use."""
        prompt = torch.zeros(1, dtype=torch.int64)
        params = SamplingParams(temperature=0, max_tokens=2)
        async with self.engine.request(
            lambda engine, sink: engine.submit_generate(None, prompt, params, sink)
        ) as stream:
            async for _ in stream.batches():
                pass

    async def _computes(self) -> bool:
        """Whether a forward pass of one token, between two turns of the engine, gives finite numbers."""

        def forward(engine: Engine) -> bool:
            with torch.inference_mode():
                return bool(self.model.model(torch.zeros(1, dtype=torch.int64)).isfinite().all())

        return await self.engine.call(forward)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.documents.sweep()
            self.uploads.sweep()
