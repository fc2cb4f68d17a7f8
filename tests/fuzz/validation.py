"""Requests from bytes to checked values, without sockets: fast enough to let coverage guide the search."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from reformer.v1 import document_pb2, inference_pb2, model_pb2
from reformer_core.tokenizers import ByteTokenizer
from reformer_server import Settings, validation
from reformer_server.content import DocumentName
from reformer_server.status import row_of, to_status
from tests.fuzz.messages import CONTENT, METHODS
from tests.fuzz.target import Judge, of_bytes
from tests.server.conftest import tiny_served_model
from tests.server.uploading import header, seconds

CLASSES = [GetMessageClass(method.input_type) for method in METHODS]
MOST_STATUS_BYTES = 4096  # in base64 and beside the message, all of it has to fit into 8 KiB


class NoMetadata:
    """The context of a call without metadata."""

    def invocation_metadata(self) -> None:
        return None


def seeds() -> list[bytes]:
    """Good requests, each after a byte that says of which class it is."""
    sampling = inference_pb2.SamplingParams(
        temperature=0.5, top_p=0.9, top_k=5, seed=7, max_tokens=3, stop=["a"], stop_ids=[1]
    )
    continuation = inference_pb2.Continuation(token_ids=inference_pb2.TokenIds(ids=[1, 2]))
    messages: list[Message] = [
        header(CONTENT, document_id="a", lease=seconds(60), keep_scores=True),
        document_pb2.ListDocumentsRequest(page_size=3, page_token="MS41IGE="),
        document_pb2.RenewDocumentRequest(document_id="a", lease=seconds(60)),
        document_pb2.ReadDocumentScoresRequest(document_id="a", start_token=1, end_token=2),
        inference_pb2.GenerateRequest(document_id="a", text="x", sampling=sampling),
        inference_pb2.ScoreContinuationsRequest(document_id="a", continuations=[continuation]),
        model_pb2.DetokenizeRequest(token_ids=inference_pb2.TokenIds(ids=[1, 2]), columns=2),
    ]
    return [bytes([CLASSES.index(type(message))]) + message.SerializeToString() for message in messages]


@contextmanager
def _validating() -> Iterator[Judge[bytes]]:
    settings, model, context = Settings(), tiny_served_model(ByteTokenizer()), NoMetadata()

    def upload(request: Any) -> None:
        head = request.header
        validation.content_header(head, DocumentName("one", "a"), settings, model)
        if hasattr(head, "lease"):
            assert 0 < validation.lease_seconds(head, settings, "lease") <= settings.max_lease_seconds

    def read_scores(request: Any) -> None:
        wanted = validation.token_range(request, 100)
        assert 0 <= wanted.start <= wanted.stop <= 100

    def generate(request: Any) -> None:
        params = validation.sampling_params(request.sampling)
        assert math.isfinite(params.temperature * params.top_p * params.min_p * params.repetition_penalty)
        ids = validation.token_ids(request.token_ids.ids, "ids", model.vocab_size)
        assert not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < model.vocab_size

    checks: dict[type[Message], Callable[[Any], object]] = {
        document_pb2.CreateDocumentRequest: upload,
        inference_pb2.ScoreRequest: upload,
        document_pb2.ListDocumentsRequest: validation.page_size,
        document_pb2.RenewDocumentRequest: lambda request: validation.lease_seconds(request, settings, "lease"),
        document_pb2.ReadDocumentScoresRequest: read_scores,
        inference_pb2.GenerateRequest: generate,
        model_pb2.DetokenizeRequest: validation.columns,
    }

    def judge(case: bytes) -> None:
        cls = CLASSES[case[0] % len(CLASSES)] if case else CLASSES[0]
        try:
            request: Any = cls.FromString(case[1:])
        except DecodeError:
            return
        try:
            if hasattr(request, "document_id"):
                validation._well_formed(request.document_id, context, "document_id")  # type: ignore[arg-type]
            checks.get(cls, lambda request: None)(request)
        except Exception as error:
            if row_of(error) is None or len(to_status(error, "r").SerializeToString()) > MOST_STATUS_BYTES:
                raise

    yield judge


REQUESTS = of_bytes("validation", "requests with bytes changed, to their validation", 60_000, seeds, _validating)
