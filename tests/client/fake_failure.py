"""How the fake server fails."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Failure:
    """What a method answers instead of its result; `after` messages of it."""

    code: grpc.StatusCode
    message: str = "as the test wants it"
    details: Sequence[Message] = ()
    after: int = 0

    async def raise_in(self, context: Context) -> None:
        status = Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        metadata = (("x-request-id", "request-of-the-server"), ("grpc-status-details-bin", status.SerializeToString()))
        await context.abort(self.code, self.message, trailing_metadata=metadata)
