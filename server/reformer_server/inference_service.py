"""InferenceService: generation and scoring, streamed."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext

import torch

from reformer.v1 import inference_pb2 as pb
from reformer.v1.inference_pb2_grpc import InferenceServiceServicer
from reformer_core.events import ContinuationScored, Finished, Progress, Scores
from reformer_server import call_facts, convert, tenants, validation
from reformer_server.calls import Context
from reformer_server.content import Encoded, Encoder, ids_to_bytes, logprobs_to_bytes
from reformer_server.documents import DocumentRegistry
from reformer_server.engine_thread import EngineThread
from reformer_server.errors import InvalidFieldError, naming
from reformer_server.generation import Generation
from reformer_server.incoming import first_message, receive
from reformer_server.metrics import Metrics
from reformer_server.quotas import Quotas
from reformer_server.served_model import ServedModel
from reformer_server.settings import Settings
from reformer_server.uploads import Uploads


class InferenceService(InferenceServiceServicer):
    """One method an RPC. Each holds its document, submits one request to the engine, and passes its events on."""

    def __init__(
        self,
        settings: Settings,
        model: ServedModel,
        engine: EngineThread,
        encoder: Encoder,
        documents: DocumentRegistry,
        uploads: Uploads,
        metrics: Metrics,
        quotas: Quotas,
    ) -> None:
        self._settings = settings
        self._model = model
        self._engine = engine
        self._encoder = encoder
        self._documents = documents
        self._uploads = uploads
        self._metrics = metrics
        self._quotas = quotas

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """Continues the document and the prompt."""
        arrived = time.monotonic()
        deadline = validation.deadline(context)
        params = validation.sampling_params(request.sampling)
        name = validation.optional_document_name(request, context)
        async with self._documents.use(name) if name else nullcontext() as in_use:
            prompt = await self._prompt(request, required=in_use is None)
            generation = Generation(arrived, in_use, len(prompt), self._metrics)
            document = in_use.document if in_use else None
            async with (
                self._quotas.paying(len(prompt)) as payment,
                self._engine.request(
                    lambda engine, sink: engine.submit_generate(document, prompt, params, sink, deadline=deadline)
                ) as stream,
            ):
                yield generation.started(params.seed)
                async for events in stream.batches():
                    payment.saw(events)
                    for response in generation.responses(events):
                        yield response

    async def Score(
        self, request_iterator: AsyncIterator[pb.ScoreRequest], context: Context
    ) -> AsyncIterator[pb.ScoreResponse]:
        """Scores the content that is sent, and keeps nothing of it."""
        deadline = validation.deadline(context)
        encoded = await self._receive(request_iterator)
        token_ids = encoded.token_ids
        total_logprob, decoder = 0.0, self._model.tokenizer.decoder()
        with naming("chunk.data"):
            async with (
                self._quotas.paying(len(token_ids)) as payment,
                self._engine.request(
                    lambda engine, sink: engine.submit_score(token_ids, sink, deadline=deadline)
                ) as stream,
            ):
                async for events in stream.batches():
                    payment.saw(events)
                    for event in events:
                        if isinstance(event, Progress):
                            yield pb.ScoreResponse(progress=convert.progress(event))
                        elif isinstance(event, Scores):
                            total_logprob += float(event.logprobs.double().nansum())
                            scored = token_ids[event.start : event.start + len(event.logprobs)]
                            for block in convert.score_blocks(event.start, event.logprobs, scored, decoder):
                                yield pb.ScoreResponse(scores=block)
                        elif isinstance(event, Finished):
                            self._metrics.scored_tokens.inc(len(token_ids))
                            summary = pb.ScoreSummary(
                                tokens=len(token_ids),
                                content_bytes=encoded.size_bytes,
                                total_logprob=total_logprob,
                                timings=convert.timings(event.timings),
                                notes=encoded.notes,
                            )
                            yield pb.ScoreResponse(summary=summary)

    async def ScoreContinuations(
        self, request: pb.ScoreContinuationsRequest, context: Context
    ) -> AsyncIterator[pb.ScoreContinuationsResponse]:
        """Scores each continuation of the document by itself."""
        deadline = validation.deadline(context)
        name = validation.document_name(request, context)
        async with self._documents.use(name) as in_use:
            document = in_use.document
            continuations = await self._continuations(request.continuations)
            call_facts.current().cached_tokens = document.tokens
            if not in_use.restored:
                self._metrics.prefill_tokens.labels("cached").inc(document.tokens)
            async with (
                self._quotas.paying(sum(map(len, continuations))) as payment,
                self._engine.request(
                    lambda engine, sink: engine.submit_continuations(document, continuations, sink, deadline=deadline)
                ) as stream,
            ):
                async for events in stream.batches():
                    payment.saw(events)
                    for event in events:
                        if isinstance(event, ContinuationScored):
                            self._metrics.scored_tokens.inc(len(event.logprobs))
                            score = pb.ContinuationScore(
                                index=event.index,
                                total_logprob=float(event.logprobs.double().sum()),
                                logprobs=logprobs_to_bytes(event.logprobs),
                                token_ids=ids_to_bytes(continuations[event.index]),
                            )
                            yield pb.ScoreContinuationsResponse(score=score)

    async def _prompt(self, request: pb.GenerateRequest, *, required: bool) -> torch.Tensor:
        kind = request.WhichOneof("prompt")
        if kind == "text":
            [prompt] = await self._encoder.texts({"text": request.text})
        else:
            prompt = validation.token_ids(request.token_ids.ids, "token_ids.ids", self._model.vocab_size)
        if required and not len(prompt):
            raise InvalidFieldError(kind or "prompt", "must not be empty without a document_id")
        return prompt

    async def _receive(self, requests: AsyncIterator[pb.ScoreRequest]) -> Encoded:
        header = (await first_message(requests)).header
        self._engine.check_queue(tenants.current().name)  # before the content is sent
        announced = validation.content_header(
            header, validation.own_name(str(uuid.uuid4())), self._settings, self._model
        )
        async with self._uploads.hold(announced) as upload:
            upload.forget()
            await receive(requests, upload)
            return await self._encoder.content(upload.finish())

    async def _continuations(self, continuations: Sequence[pb.Continuation]) -> list[torch.Tensor]:
        if not 1 <= len(continuations) <= validation.MAX_CONTINUATIONS:
            raise InvalidFieldError(
                "continuations", f"must be 1 to {validation.MAX_CONTINUATIONS}, but are {len(continuations)}"
            )
        texts = {
            f"continuations[{index}].text": continuation.text
            for index, continuation in enumerate(continuations)
            if continuation.HasField("text")
        }
        encoded = iter(await self._encoder.texts(texts))
        token_ids = [
            next(encoded)
            if continuation.HasField("text")
            else validation.token_ids(
                continuation.token_ids.ids, f"continuations[{index}].token_ids.ids", self._model.vocab_size
            )
            for index, continuation in enumerate(continuations)
        ]
        for index, ids in enumerate(token_ids):
            if not 1 <= len(ids) <= validation.MAX_CONTINUATION_TOKENS:
                raise InvalidFieldError(
                    f"continuations[{index}]",
                    f"must be 1 to {validation.MAX_CONTINUATION_TOKENS:,} tokens, but is {len(ids):,}",
                )
        return token_ids
