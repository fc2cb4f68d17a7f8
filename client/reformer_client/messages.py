"""Translates the messages of the contract into values and back; the only place where their fields are read."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any, TypedDict

from google.protobuf.duration_pb2 import Duration

from reformer.v1 import admin_pb2, document_pb2, inference_pb2, model_pb2
from reformer_client.errors import InternalError
from reformer_client.results import (
    ContentType,
    ContinuationScore,
    DocumentInfo,
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    Load,
    ModelInfo,
    OwnedDocument,
    Progress,
    Timings,
    Token,
    TopToken,
    Usage,
)
from reformer_client.scores import ScoreBlock, float32_view, uint32_view
from reformer_client.token_ids import token_ids


class Drawing(TypedDict, total=False):
    """How tokens are drawn. The filters apply in this order; what is left out has the server's default."""

    temperature: float
    """0 and more; 0 takes the most likely token. Default: 1."""
    repetition_penalty: float
    """Above 0; divides positive logits of tokens seen in prompt or continuation. Default: 1 (off)."""
    top_k: int
    """Keep the k most likely tokens; 0: all. Default: 0."""
    top_p: float
    """Keep the most likely tokens whose probabilities reach this. Above 0, at most 1. Default: 1 (off)."""
    min_p: float
    """Drop tokens less likely than this times the most likely one. 0 to 1. Default: 0 (off)."""
    seed: int
    """The same seed gives the same tokens. Default: drawn by the server."""


class Sampling(Drawing, total=False):
    """How tokens are drawn, and when a generation ends."""

    max_tokens: int
    """1 and more. Default: 256."""
    stop: str | Sequence[str]
    """Text (or up to 16 texts) before which the generation ends."""
    stop_ids: Sequence[int]
    """Ids at which the generation ends, besides the end-of-sequence token."""
    top_logprobs: int
    """Report this many of the most likely tokens with each one. 0 to 20. Default: 0."""


MOST_SECONDS = 315_576_000_000  # what a google.protobuf.Duration holds


def sampling_message(sampling: Sampling) -> inference_pb2.SamplingParams:
    """Raises TypeError or ValueError for what can't be sent; the server judges the values."""
    if unknown := sampling.keys() - Sampling.__annotations__.keys():
        known = ", ".join(Sampling.__annotations__)
        raise TypeError(f"there is no sampling parameter {', '.join(sorted(unknown))}; there are {known}")
    message = inference_pb2.SamplingParams()
    for name, value in sampling.items():
        is_one_stop = name == "stop" and isinstance(value, str)  # else its characters would be taken for texts
        field: dict[str, Any] = {name: [value] if is_one_stop else value}
        try:
            message.MergeFrom(inference_pb2.SamplingParams(**field))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} can't be {value!r}: {error}") from None
    return message


def generate_message(
    document_id: str | None, prompt: str | Sequence[int] | None, sampling: Sampling
) -> inference_pb2.GenerateRequest:
    """A str is text, a sequence of ints is token ids."""
    request = inference_pb2.GenerateRequest(document_id=document_id, sampling=sampling_message(sampling))
    if isinstance(prompt, str):
        request.text = prompt
    elif prompt is not None:
        request.token_ids.CopyFrom(token_ids_message(prompt))
    return request


def continuation_message(continuation: str | Sequence[int]) -> inference_pb2.Continuation:
    """A str is text, a sequence of ints is token ids."""
    if isinstance(continuation, str):
        return inference_pb2.Continuation(text=continuation)
    return inference_pb2.Continuation(token_ids=token_ids_message(continuation))


def token_ids_message(ids: Sequence[int]) -> inference_pb2.TokenIds:
    """Raises TypeError for what are no ints, ValueError for what no id can be."""
    return inference_pb2.TokenIds(ids=token_ids(ids))


def lease_message(seconds: float | None) -> Duration | None:
    """None stays unset. Raises ValueError for what no duration can be; the server knows how long it may be."""
    if seconds is None:
        return None
    if not 0 < seconds < MOST_SECONDS:  # nan is neither
        raise ValueError(f"lease_seconds must be above 0 and finite, but is {seconds!r}")
    whole = int(seconds // 1)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def is_result(response: inference_pb2.GenerateResponse | inference_pb2.ScoreResponse) -> bool:
    """Whether it has a part of what was asked for; else it says that the server has begun, or how far it is."""
    return response.WhichOneof("event") not in ("started", "progress")


def seconds(duration: Duration) -> float:
    """Not by `Duration.ToTimedelta`, which would cut it to microseconds."""
    return duration.seconds + duration.nanos / 1e9


def progress(message: document_pb2.Progress) -> Progress:
    """One report."""
    return Progress(message.processed_tokens, message.total_tokens, seconds(message.elapsed))


def usage(message: inference_pb2.Usage) -> Usage:
    """Counts of tokens."""
    return Usage(message.cached_tokens, message.prompt_tokens, message.output_tokens)


def timings(message: inference_pb2.Timings) -> Timings:
    """Times, in seconds."""
    return Timings(
        queued_seconds=seconds(message.queued),
        prefill_seconds=seconds(message.prefill),
        decode_seconds=seconds(message.decode),
        first_token_seconds=seconds(message.time_to_first_token) if message.HasField("time_to_first_token") else None,
    )


def started(message: inference_pb2.GenerateStarted) -> GenerationStarted:
    """The first event of a generation."""
    return GenerationStarted(usage(message.usage), message.seed)


def finished(message: inference_pb2.GenerateFinished) -> GenerationFinished:
    """The last event of a generation."""
    reasons = {
        inference_pb2.FINISH_REASON_STOP: FinishReason.STOP,
        inference_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
        inference_pb2.FINISH_REASON_POSITIONS_EXHAUSTED: FinishReason.POSITIONS_EXHAUSTED,
    }
    reason = reasons.get(message.reason, FinishReason.OTHER)
    return GenerationFinished(reason, usage(message.usage), timings(message.timings))


def tokens(chunk: inference_pb2.TokenChunk) -> list[Token]:
    """The tokens of one chunk; its text goes with the last of them. Raises InternalError if they don't add up."""
    last = len(chunk.ids) - 1
    if len(chunk.logprobs) != len(chunk.ids) or len(chunk.top) not in (0, len(chunk.ids)):
        raise InternalError(
            f"a message changed on its way: {len(chunk.ids)} tokens have {len(chunk.logprobs)} log-probabilities"
        )
    return [
        Token(
            id=id,
            text=chunk.text if i == last else "",
            logprob=chunk.logprobs[i],
            top=tuple(TopToken(t.id, t.logprob) for t in chunk.top[i].tokens) if chunk.top else (),
        )
        for i, id in enumerate(chunk.ids)
    ]


def score_block(message: document_pb2.TokenScores) -> ScoreBlock:
    """One message of scores, uncopied."""
    return ScoreBlock(
        message.start_token,
        float32_view(message.logprobs),
        uint32_view(message.token_ids),
        message.text,
        uint32_view(message.text_lengths),
    )


def continuation_score(message: inference_pb2.ContinuationScore) -> ContinuationScore:
    """One continuation's score, uncopied."""
    logprobs, token_ids = float32_view(message.logprobs), uint32_view(message.token_ids)
    return ContinuationScore(message.index, message.total_logprob, logprobs, token_ids)


def document_info(message: document_pb2.Document) -> DocumentInfo:
    """A document as the server describes it."""
    content_types = {
        document_pb2.CONTENT_TYPE_TOKEN_IDS: ContentType.TOKEN_IDS,
        document_pb2.CONTENT_TYPE_IMAGE: ContentType.IMAGE,
    }
    return DocumentInfo(
        id=message.document_id,
        content_type=content_types.get(message.content_type, ContentType.TEXT),
        tokens=message.tokens,
        content_bytes=message.content_bytes,
        sha256=message.sha256,
        memory_bytes=message.memory_bytes,
        create_time=message.create_time.ToDatetime(UTC),
        expire_time=message.expire_time.ToDatetime(UTC),
        has_scores=message.has_scores,
        cached=message.cached,
        stored=message.stored,
        notes=tuple(message.notes),
    )


def owned_document(message: admin_pb2.OwnedDocument) -> OwnedDocument:
    """A document as an admin sees it."""
    last_use_time = message.last_use_time.ToDatetime(UTC) if message.HasField("last_use_time") else None
    return OwnedDocument(message.tenant, document_info(message.document), message.in_memory, last_use_time)


def model_info(message: model_pb2.GetModelResponse) -> ModelInfo:
    """The names of the fields are the contract's."""
    return ModelInfo(**{field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields})


def load(message: model_pb2.GetLoadResponse) -> Load:
    """The names of the fields are the contract's."""
    return Load(**{field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields})
