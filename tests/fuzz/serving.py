"""A real server, and calls to it as bytes, judged by how they end and by what they leave behind."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from reformer.v1 import document_pb2, inference_pb2, model_pb2
from reformer_client.exchange import exchange
from reformer_server import ServedModel
from reformer_server.status import ERROR_DOMAIN, TABLE
from tests.fuzz.messages import CONTENT, DOCUMENTS, IDS, METHODS
from tests.fuzz.target import CASE_SECONDS
from tests.server.conftest import Running, running_server
from tests.server.uploading import TEXT, TOKEN_IDS, create_document

Metadata = Sequence[tuple[str, str | bytes]]

DOCUMENTED = {row.code for row in TABLE.values()} | {grpc.StatusCode.OK}
"""Of a bug are UNKNOWN and INTERNAL."""
BY_GRPC = re.compile(r"larger than max|metadata size exceeds|the connection broke while the request was being sent")
"""What gRPC itself says to messages that are too large, and the client where the server answers before it has read all:
they have no details."""
MOST_RESPONSES = 8
"""So many are read; then the client has had enough, and leaves."""
CASES_BETWEEN_LOOKS = 50
METHOD = {method.name: method for method in METHODS}


class Served:
    """A server under fuzz."""

    def __init__(self, running: Running, look_inside: Callable[[Running], None]) -> None:
        """`look_inside` asserts, when nothing runs, whatever the RPCs don't tell."""
        self.running = running
        self.cases = 0
        self._look_inside = look_inside
        self._content = (CONTENT, TEXT) if running.server.model.pixels is None else (IDS, TOKEN_IDS)

    async def judge(self, method: MethodDescriptor, requests: Sequence[bytes], metadata: Metadata = ()) -> None:
        """One case: a call, and every now and then a look at what the calls have left behind."""
        await self.call(method, requests, metadata)
        self.cases += 1
        if self.cases % CASES_BETWEEN_LOOKS == 0:
            await self.look()

    async def call(
        self, method: MethodDescriptor, requests: Sequence[bytes], metadata: Metadata = ()
    ) -> tuple[grpc.StatusCode, list[Message]]:
        """How the call ends, and what came; an end that isn't documented is a failure, and so is none."""

        async def send() -> AsyncGenerator[bytes]:
            for request in requests:
                yield request

        path = f"/{method.containing_service.full_name}/{method.name}"
        call: grpc.aio.StreamStreamCall[bytes, bytes] = self.running.channel.stream_stream(path)(
            metadata=tuple(metadata)
        )
        responses: list[Message] = []
        try:
            async with asyncio.timeout(CASE_SECONDS), aclosing(exchange(call, send())) as answers:
                async for answer in answers:
                    responses.append(GetMessageClass(method.output_type).FromString(answer))
                    if len(responses) == MOST_RESPONSES:
                        return grpc.StatusCode.CANCELLED, responses
        except grpc.aio.AioRpcError as error:
            check_status(error)
            return error.code(), responses
        except TimeoutError:
            raise AssertionError(f"{path} doesn't end") from None
        return grpc.StatusCode.OK, responses

    async def succeed(self, request: Message) -> list[Any]:
        """A request that nothing is wrong with."""
        method = METHOD[request.DESCRIPTOR.name.removesuffix("Request")]
        code, responses = await self.call(method, [request.SerializeToString()])
        assert code == grpc.StatusCode.OK, f"{method.name}: {code}"
        return responses

    async def look(self) -> None:
        """It still answers, and once all documents are deleted it holds nothing."""
        await create_document(self.running, self._content[0], content_type=self._content[1], document_id="known")
        prompt = inference_pb2.TokenIds(ids=[1, 2])
        sampling = inference_pb2.SamplingParams(max_tokens=3, temperature=0)
        request = inference_pb2.GenerateRequest(document_id="known", token_ids=prompt, sampling=sampling)
        responses = await self.succeed(request)
        assert sum(len(response.tokens.ids) for response in responses) == 3
        await self.clear()
        await self.fill()

    async def clear(self) -> None:
        """Deletes what there is; nothing may be left then."""
        while True:
            [page] = await self.succeed(document_pb2.ListDocumentsRequest(page_size=1000))
            for document in page.documents:
                await self.succeed(document_pb2.DeleteDocumentRequest(document_id=document.document_id))
            if not page.documents:
                break
        async with asyncio.timeout(CASE_SECONDS):
            while True:
                [load] = await self.succeed(model_pb2.GetLoadRequest())
                if not (load.running_requests or load.waiting_requests or load.documents or load.used_page_bytes):
                    break
                await asyncio.sleep(0.002)
        self._look_inside(self.running)

    async def fill(self) -> None:
        """The documents that the cases name, whatever of them is on its way."""
        content, content_type = self._content
        for document_id, keep_scores in zip(DOCUMENTS, (True, False), strict=True):
            await self.succeed(document_pb2.DeleteDocumentRequest(document_id=document_id))
            await create_document(
                self.running,
                content[: len(content) - 4 * keep_scores],
                content_type=content_type,
                document_id=document_id,
                keep_scores=keep_scores,
            )


def check_status(error: grpc.aio.AioRpcError) -> None:
    """Only what the table of errors has, with its reason."""
    code, text = error.code(), error.details() or ""
    assert code in DOCUMENTED, f"{code}: {text}"
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    if status is None:
        assert BY_GRPC.search(text), f"{code} without details: {text}"
        return
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info), "the first detail is no ErrorInfo"
    assert (info.domain, bool(info.reason)) == (ERROR_DOMAIN, True)


@contextmanager
def served(
    model: ServedModel,
    make_engine: Callable[[], Any],
    look_inside: Callable[[Running], None] = lambda running: None,
    **settings: Any,
) -> Iterator[tuple[Served, asyncio.Runner]]:
    """A server on a loop of its own, which runs while `Runner.run` does."""
    with asyncio.Runner() as runner:
        context = running_server(model, make_engine(), **settings)
        under_fuzz = Served(runner.run(context.__aenter__()), look_inside)
        try:
            runner.run(under_fuzz.fill())
            yield under_fuzz, runner
            runner.run(under_fuzz.look())
            runner.run(under_fuzz.clear())
            until_no_upload_is_kept = under_fuzz.running.until(lambda: under_fuzz.running.server.uploads.nbytes == 0)
            runner.run(until_no_upload_is_kept)
        finally:
            runner.run(context.__aexit__(None, None, None))
