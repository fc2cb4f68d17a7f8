"""The request side of the two streaming uploads: one header, then chunks, then the client half-closes."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from reformer.v1 import document_pb2, inference_pb2
from reformer_core.errors import TooManyTokensError
from reformer_server.errors import InvalidFieldError
from reformer_server.uploads import Upload

Request = TypeVar("Request", document_pb2.CreateDocumentRequest, inference_pb2.ScoreRequest)


async def first_message(requests: AsyncIterator[Request]) -> Request:
    """The message with the header. Raises InvalidFieldError."""
    request = await anext(requests, None)
    if request is None or not request.HasField("header"):
        raise InvalidFieldError("header", "must come first")
    return request


async def receive(requests: AsyncIterator[Request], upload: Upload) -> None:
    """Feeds all chunks to the upload. Raises InvalidFieldError, UploadMemoryError."""
    async for request in requests:
        if not request.HasField("chunk"):
            raise InvalidFieldError("chunk", "must be set in every message after the header, which comes once")
        upload.append(request.chunk)


@contextmanager
def forgetting_bad_content(upload: Upload) -> Iterator[None]:
    """What the model can't read isn't worth resuming; whatever else goes wrong leaves the upload as it is."""
    try:
        yield
    except (InvalidFieldError, TooManyTokensError):
        upload.forget()
        raise
