"""A small server that speaks the contract, remembers what it was asked, and fails on demand."""

import asyncio
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from reformer.v1 import document_pb2, document_pb2_grpc, inference_pb2_grpc, model_pb2_grpc
from tests.client.fake_failure import Context, Failure
from tests.client.fake_services import DocumentService, InferenceService, ModelService


class FakeServer:
    """Tokens are bytes. Runs on a thread of its own; the attributes may be read and set from the test."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        """Each call's method and metadata."""
        self.requests: list[Any] = []
        self.cancelled: Counter[str] = Counter()
        self.failures: dict[str, deque[Failure]] = defaultdict(deque)
        self.break_upload_at: deque[int] = deque()
        """Bytes after which the next uploads break with UNAVAILABLE."""
        self.forget_uploads = False
        """Whether a broken upload starts from byte 0 again."""
        self.stall = False
        """Whether streams stop after their first messages, until they are cancelled."""
        self.truncate: int | None = None
        """Streams end after this many messages, with status OK."""
        self.break_score_at: int | None = None
        """Bytes after which the next Score call breaks with UNAVAILABLE."""
        self.uploads: dict[str, bytearray] = defaultdict(bytearray)
        self.chunk_sizes: list[int] = []
        self.documents: dict[str, document_pb2.Document] = {}
        self.deadlines: list[float | None] = []

    def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started, credentials)))
        self._thread.start()
        self._loop, self._stop = started.result(timeout=10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def fail(self, method: str, *codes: grpc.StatusCode, details: Sequence[Message] = (), after: int = 0) -> None:
        """Has the next calls of the method fail, one with each code."""
        self.failures[method] += [Failure(code, details=details, after=after) for code in codes]

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    async def _serve(
        self,
        started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]",
        credentials: grpc.ServerCredentials | None,
    ) -> None:
        server = grpc.aio.server()
        document_pb2_grpc.add_DocumentServiceServicer_to_server(DocumentService(self), server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(self), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self), server)
        if credentials is None:
            self.port = server.add_insecure_port("localhost:0")
        else:
            self.port = server.add_secure_port("localhost:0", credentials)
        await server.start()
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        await server.stop(None)

    async def enter(self, method: str, context: Context, request: Message | None = None) -> Failure | None:
        """Takes notes, and fails if the test wants it; returns the failure if it wants it later."""
        self.calls.append((method, {key: str(value) for key, value in context.invocation_metadata() or ()}))
        self.deadlines.append(context.time_remaining())
        if request is not None:
            self.requests.append(request)
        failure = self.failures[method].popleft() if self.failures[method] else None
        if failure is not None and failure.after == 0:
            await failure.raise_in(context)
        return failure

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Raises TimeoutError if it takes longer than five seconds."""
        deadline = time.monotonic() + 5
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.005)

    async def stream(
        self, method: str, context: Context, messages: Sequence[Any], failure: Failure | None
    ) -> AsyncIterator[Any]:
        """The messages, or the first of them and then the failure, or the first three and then nothing."""
        try:
            for i, message in enumerate(messages):
                if failure is not None and i == failure.after:
                    await failure.raise_in(context)
                if i == self.truncate:
                    return
                if self.stall and i == 3:
                    await asyncio.Event().wait()
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled[method] += 1
            raise
