"""The fake server's services: tokens are bytes, and generations spell the alphabet."""

# ruff: noqa: N802  (the methods have the contract's names)

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from reformer.v1 import (
    document_pb2,
    document_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from tests.client.fake_failure import Context, Failure

if TYPE_CHECKING:
    from tests.client.fake_server import FakeServer


def scores_of(data: bytes, start: int = 0) -> document_pb2.TokenScores:
    """The fake model gives each byte but the first the log-probability -byte / 64."""
    logprobs = [-byte / 64 for byte in data]
    if start == 0 and data:
        logprobs[0] = float("nan")
    return document_pb2.TokenScores(
        start_token=start,
        logprobs=struct.pack(f"<{len(data)}f", *logprobs),
        token_ids=struct.pack(f"<{len(data)}I", *data),
        text=data,
        text_lengths=struct.pack(f"<{len(data)}I", *[1] * len(data)),
    )


class DocumentService(document_pb2_grpc.DocumentServiceServicer):
    def __init__(self, fake: "FakeServer") -> None:
        self.fake = fake

    async def CreateDocument(
        self, requests: Any, context: Context
    ) -> AsyncIterator[document_pb2.CreateDocumentResponse]:
        response = document_pb2.CreateDocumentResponse
        failure = await self.fake.enter("CreateDocument", context)
        header = (await anext(aiter(requests))).header
        self.fake.requests.append(header)
        content = self.fake.uploads[header.document_id]
        if self.fake.forget_uploads:
            content.clear()
        breaks_at = self.fake.break_upload_at.popleft() if self.fake.break_upload_at else None
        yield response(accepted={"document_id": header.document_id, "resume_offset": len(content)})
        try:
            async for request in requests:
                if request.chunk.offset != len(content):
                    wrong = f"gap: {request.chunk.offset} after {len(content)}"
                    await Failure(grpc.StatusCode.INVALID_ARGUMENT, wrong).raise_in(context)
                content += request.chunk.data
                self.fake.chunk_sizes.append(len(request.chunk.data))
                if breaks_at is not None and len(content) >= breaks_at:
                    del content[breaks_at:]
                    await Failure(grpc.StatusCode.UNAVAILABLE).raise_in(context)
            if header.HasField("sha256") and header.sha256 != hashlib.sha256(content).digest():
                await Failure(grpc.StatusCode.INVALID_ARGUMENT, "digest differs").raise_in(context)
        except (asyncio.CancelledError, GeneratorExit):
            self.fake.cancelled["CreateDocument"] += 1
            raise
        document = document_pb2.Document(
            document_id=header.document_id,
            content_type=header.content_type,
            tokens=len(content),
            content_bytes=len(content),
            sha256=hashlib.sha256(content).digest(),
            memory_bytes=10 * len(content),
            has_scores=header.keep_scores,
        )
        document.create_time.FromSeconds(1_700_000_000)
        document.expire_time.FromSeconds(1_700_000_000 + (header.lease.seconds or 3600))
        self.fake.documents[header.document_id] = document
        progress = [
            response(progress={"processed_tokens": done, "total_tokens": len(content), "elapsed": {"seconds": 1}})
            for done in (0, len(content) // 2, len(content))
        ]
        messages = [*progress, response(document=document)]
        async for message in self.fake.stream("CreateDocument", context, messages, failure):
            yield message

    async def GetDocument(self, request: Any, context: Context) -> document_pb2.GetDocumentResponse:
        await self.fake.enter("GetDocument", context, request)
        if request.document_id not in self.fake.documents:
            await Failure(grpc.StatusCode.NOT_FOUND, f"no document {request.document_id!r}").raise_in(context)
        return document_pb2.GetDocumentResponse(document=self.fake.documents[request.document_id])

    async def ListDocuments(self, request: Any, context: Context) -> document_pb2.ListDocumentsResponse:
        await self.fake.enter("ListDocuments", context, request)
        documents, start, size = (
            list(self.fake.documents.values()),
            int(request.page_token or 0),
            request.page_size or 100,
        )
        more = str(start + size) if start + size < len(documents) else ""
        return document_pb2.ListDocumentsResponse(documents=documents[start : start + size], next_page_token=more)

    async def RenewDocument(self, request: Any, context: Context) -> document_pb2.RenewDocumentResponse:
        await self.fake.enter("RenewDocument", context, request)
        document = self.fake.documents[request.document_id]
        document.expire_time.FromSeconds(1_800_000_000 + request.lease.seconds)
        return document_pb2.RenewDocumentResponse(document=document)

    async def DeleteDocument(self, request: Any, context: Context) -> document_pb2.DeleteDocumentResponse:
        await self.fake.enter("DeleteDocument", context, request)
        self.fake.documents.pop(request.document_id, None)
        return document_pb2.DeleteDocumentResponse()

    async def ReadDocumentScores(
        self, request: Any, context: Context
    ) -> AsyncIterator[document_pb2.ReadDocumentScoresResponse]:
        failure = await self.fake.enter("ReadDocumentScores", context, request)
        content = self.fake.uploads[request.document_id]
        end = request.end_token if request.HasField("end_token") else len(content)
        messages = [
            document_pb2.ReadDocumentScoresResponse(scores=scores_of(bytes(content[i : min(i + 4, end)]), i))
            for i in range(request.start_token, end, 4)
        ]
        async for message in self.fake.stream("ReadDocumentScores", context, messages, failure):
            yield message


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, fake: "FakeServer") -> None:
        self.fake = fake

    async def Generate(self, request: Any, context: Context) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """Spells the alphabet; the first chunk holds two tokens."""
        response = inference_pb2.GenerateResponse
        failure = await self.fake.enter("Generate", context, request)
        count = request.sampling.max_tokens if request.sampling.HasField("max_tokens") else 8
        usage = {"cached_tokens": 3, "prompt_tokens": len(request.text) or len(request.token_ids.ids)}
        letters = [chr(ord("a") + i % 26) for i in range(count)]
        chunks = [letters[:2], *([letter] for letter in letters[2:])]
        k = request.sampling.top_logprobs
        messages = [
            response(started={"usage": usage, "seed": 7}),
            response(progress={"processed_tokens": 1, "total_tokens": 2}),
            *(
                response(
                    tokens={
                        "ids": [ord(letter) for letter in chunk],
                        "text": "".join(chunk),
                        "logprobs": [-0.5] * len(chunk),
                        "top": [{"tokens": [{"id": 1, "logprob": -0.25}] * k}] * len(chunk) if k else [],
                    }
                )
                for chunk in chunks
            ),
            response(
                finished={
                    "reason": inference_pb2.FINISH_REASON_LENGTH,
                    "usage": usage | {"output_tokens": count},
                    "timings": {"prefill": {"nanos": 500_000_000}, "time_to_first_token": {"seconds": 1}},
                }
            ),
        ]
        async for message in self.fake.stream("Generate", context, messages, failure):
            yield message

    async def Score(self, requests: Any, context: Context) -> AsyncIterator[inference_pb2.ScoreResponse]:
        response = inference_pb2.ScoreResponse
        failure = await self.fake.enter("Score", context)
        content = bytearray()
        async for request in requests:
            if request.WhichOneof("part") == "header":
                self.fake.requests.append(request.header)
            else:
                assert request.chunk.offset == len(content)
                content += request.chunk.data
            if self.fake.break_score_at is not None and len(content) >= self.fake.break_score_at:
                self.fake.break_score_at = None
                await Failure(grpc.StatusCode.UNAVAILABLE).raise_in(context)
        logprobs = memoryview(scores_of(bytes(content)).logprobs).cast("f")
        messages = [
            response(progress={"processed_tokens": len(content), "total_tokens": len(content)}),
            *(response(scores=scores_of(bytes(content[i : i + 32768]), i)) for i in range(0, len(content), 32768)),
            response(
                summary={"tokens": len(content), "content_bytes": len(content), "total_logprob": sum(logprobs[1:])}
            ),
        ]
        async for message in self.fake.stream("Score", context, messages, failure):
            yield message

    async def ScoreContinuations(
        self, request: Any, context: Context
    ) -> AsyncIterator[inference_pb2.ScoreContinuationsResponse]:
        failure = await self.fake.enter("ScoreContinuations", context, request)
        messages = []
        for index, continuation in enumerate(request.continuations):
            data = continuation.text.encode() or bytes(continuation.token_ids.ids)
            scores = scores_of(data, start=1)
            total = sum(memoryview(scores.logprobs).cast("f"))
            messages.append(
                inference_pb2.ScoreContinuationsResponse(
                    score={
                        "index": index,
                        "total_logprob": total,
                        "logprobs": scores.logprobs,
                        "token_ids": scores.token_ids,
                    }
                )
            )
        async for message in self.fake.stream("ScoreContinuations", context, messages, failure):
            yield message


class ModelService(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, fake: "FakeServer") -> None:
        self.fake = fake

    async def GetModel(self, request: Any, context: Context) -> model_pb2.GetModelResponse:
        await self.fake.enter("GetModel", context, request)
        return model_pb2.GetModelResponse(name="fake", max_tokens=1 << 20, vocab_size=256, tokenizer="bytes")

    async def Tokenize(self, request: Any, context: Context) -> model_pb2.TokenizeResponse:
        await self.fake.enter("Tokenize", context, request)
        return model_pb2.TokenizeResponse(ids=request.text.encode())

    async def Detokenize(self, request: Any, context: Context) -> model_pb2.DetokenizeResponse:
        await self.fake.enter("Detokenize", context, request)
        return model_pb2.DetokenizeResponse(text=bytes(request.token_ids.ids).decode())

    async def GetLoad(self, request: Any, context: Context) -> model_pb2.GetLoadResponse:
        await self.fake.enter("GetLoad", context, request)
        if self.fake.stall:
            await asyncio.Event().wait()
        return model_pb2.GetLoadResponse(running_requests=2, total_page_bytes=1000, draining=True)
