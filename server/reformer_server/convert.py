"""Values of the engine and the registry to messages of the contract."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from reformer.v1 import document_pb2, inference_pb2
from reformer_core import events
from reformer_core.events import FinishReason
from reformer_core.tokenizers import IncrementalDecoder
from reformer_server.content import ids_to_bytes, logprobs_to_bytes
from reformer_server.entries import Entry

SCORES_BLOCK_TOKENS = 32_768
SCORES_BLOCK_TEXT_BYTES = 512 * 1024

FINISH_REASONS = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    FinishReason.POSITIONS_EXHAUSTED: inference_pb2.FINISH_REASON_POSITIONS_EXHAUSTED,
}


def duration(seconds: float) -> Duration:
    """Seconds, to the nanosecond."""
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def timestamp(unix_time: float) -> Timestamp:
    """Unix time in seconds."""
    return Timestamp(seconds=int(unix_time), nanos=int(unix_time % 1 * 1e9))


def document(entry: Entry, *, cached: bool = False) -> document_pb2.Document:
    """What clients see of a document."""
    return document_pb2.Document(
        document_id=entry.name.document_id,
        content_type=entry.key.content_type,
        tokens=entry.tokens,
        content_bytes=entry.content_bytes,
        sha256=entry.key.sha256,
        memory_bytes=entry.memory_bytes,
        create_time=timestamp(entry.create_time),
        expire_time=timestamp(entry.expire_time),
        has_scores=entry.has_scores,
        cached=cached,
        notes=entry.notes,
        stored=entry.stored,
    )


def progress(event: events.Progress) -> document_pb2.Progress:
    """How far the work is."""
    return document_pb2.Progress(
        processed_tokens=event.processed_tokens,
        total_tokens=event.total_tokens,
        elapsed=duration(event.elapsed_seconds),
    )


def timings(event: events.Timings, time_to_first_token: float | None = None) -> inference_pb2.Timings:
    """Where the time went; `time_to_first_token` in seconds from the call's arrival."""
    return inference_pb2.Timings(
        queued=duration(event.queued_seconds),
        prefill=duration(event.prefill_seconds),
        decode=duration(event.decode_seconds),
        time_to_first_token=None if time_to_first_token is None else duration(time_to_first_token),
    )


def token_chunk(tokens: Sequence[events.Token]) -> inference_pb2.TokenChunk:
    """Tokens that are there at the same time, in one message."""
    chunk = inference_pb2.TokenChunk(
        ids=[token.id for token in tokens],
        text="".join(token.text for token in tokens),
        logprobs=[token.logprob for token in tokens],
    )
    if any(token.top for token in tokens):
        chunk.top.extend(
            inference_pb2.TopTokens(
                tokens=[inference_pb2.TopToken(id=id, logprob=logprob) for id, logprob in token.top]
            )
            for token in tokens
        )
    return chunk


def score_blocks(
    start: int, logprobs: torch.Tensor, token_ids: torch.Tensor, decoder: IncrementalDecoder
) -> Iterator[document_pb2.TokenScores]:
    """Scores and ids [n] of the tokens from `start` on, with their text.

    In messages of at most SCORES_BLOCK_TOKENS and SCORES_BLOCK_TEXT_BYTES. `decoder` has to be fresh.
    """
    for first in range(0, len(logprobs), SCORES_BLOCK_TOKENS):
        spelled = decoder.spell(token_ids[first : first + SCORES_BLOCK_TOKENS].tolist())
        lengths = np.fromiter(map(len, spelled), "<u4", len(spelled))
        for part in _runs(lengths, SCORES_BLOCK_TEXT_BYTES):
            block = slice(first + part.start, first + part.stop)
            yield document_pb2.TokenScores(
                start_token=start + block.start,
                logprobs=logprobs_to_bytes(logprobs[block]),
                token_ids=ids_to_bytes(token_ids[block]),
                text=b"".join(spelled[part]),
                text_lengths=lengths[part].tobytes(),
            )


def _runs(sizes: npt.NDArray[np.uint32], most: int) -> Iterator[slice]:
    """Consecutive runs of `sizes` [n], each of `most` in sum if it can; a larger size is a run by itself."""
    ends = np.cumsum(sizes, dtype=np.int64)
    start, before = 0, 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, stop)
        start, before = stop, int(ends[stop - 1])
