"""The stubs of all services over one channel."""

from functools import cached_property
from typing import TYPE_CHECKING

import grpc.aio
from google.protobuf.descriptor import FileDescriptor

from reformer.v1 import admin_pb2, document_pb2, inference_pb2, model_pb2
from reformer.v1.admin_pb2_grpc import AdminServiceStub
from reformer.v1.document_pb2_grpc import DocumentServiceStub
from reformer.v1.inference_pb2_grpc import InferenceServiceStub
from reformer.v1.model_pb2_grpc import ModelServiceStub
from reformer_client.connection import Connection

if TYPE_CHECKING:
    from reformer.v1.admin_pb2_grpc import AdminServiceAsyncStub
    from reformer.v1.document_pb2_grpc import DocumentServiceAsyncStub
    from reformer.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from reformer.v1.model_pb2_grpc import ModelServiceAsyncStub


class Services:
    """Opens the channel when it is first used: on the event loop that uses it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._closed = False

    @cached_property
    def documents(self) -> "DocumentServiceAsyncStub":
        return DocumentServiceStub(self._channel)

    @cached_property
    def inference(self) -> "InferenceServiceAsyncStub":
        return InferenceServiceStub(self._channel)

    @cached_property
    def model(self) -> "ModelServiceAsyncStub":
        return ModelServiceStub(self._channel)

    @cached_property
    def admin(self) -> "AdminServiceAsyncStub":
        return AdminServiceStub(self._channel)

    def name_of(self, method: object) -> str:
        """What a method of one of these is called: `reformer.v1.InferenceService/Generate`."""
        stubs: tuple[tuple[FileDescriptor, object], ...] = (
            (admin_pb2.DESCRIPTOR, self.admin),
            (document_pb2.DESCRIPTOR, self.documents),
            (inference_pb2.DESCRIPTOR, self.inference),
            (model_pb2.DESCRIPTOR, self.model),
        )
        for file, stub in stubs:
            for service in file.services_by_name.values():
                for name in service.methods_by_name:
                    if getattr(stub, name, None) is method:
                        return f"{service.full_name}/{name}"
        raise ValueError(f"{method!r} is no method of these services")

    async def close(self) -> None:
        """Cancels what is running, and lets nothing start any more."""
        self._closed = True
        if "_channel" in vars(self):
            await self._channel.close()

    def require_open(self) -> None:
        """Raises RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("the client is closed")

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return self.connection.open()
