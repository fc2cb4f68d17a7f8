"""Streams: iterators that are context managers, too. Leaving one early, in any way, cancels its call."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from typing import Generic, Self, TypeVar

from reformer.v1 import document_pb2, inference_pb2
from reformer_client import messages
from reformer_client.errors import InternalError
from reformer_client.progress import OnProgress, report
from reformer_client.results import Generation, GenerationFinished, GenerationStarted, Token, Usage
from reformer_client.scores import ScoreBlock, Scores, concatenate, total

Event = TypeVar("Event")
Item = TypeVar("Item")


class AsyncStream(ABC, Generic[Event, Item]):
    """Items out of the events of a call. The call is made when the first item is asked for.

    `break` out of the loop and drop the stream, leave its `async with` block, call `aclose()`: each cancels the call.
    """

    # The events' generator must not refer to the stream: so the last reference to the stream is the last one to the
    # generator, too, whose `finally` asyncio then runs on the right loop.
    def __init__(self, events: AsyncGenerator[Event]) -> None:
        self._events = events
        self._items: deque[Item] = deque()
        self._is_whole = True  # nothing was handed out yet

    @abstractmethod
    async def _receive(self, event: Event) -> Iterable[Item]:
        """The items in an event."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        self._is_whole = False
        while not self._items:
            try:
                self._items.extend(await self._receive(await anext(self._events)))
            except StopAsyncIteration:
                raise
            except BaseException:
                await self._events.aclose()  # of no use any more: `_receive` failed, or the events did
                raise
        return self._items.popleft()

    async def aclose(self) -> None:
        """Ends the stream, and cancels the call if it isn't over."""
        self._items.clear()
        await self._events.aclose()

    async def _all(self) -> list[Item]:
        """Every item of the stream."""
        if not self._is_whole:
            raise RuntimeError("collect() is for all of a stream, but a part of this one was iterated over already")
        async with self:
            return [item async for item in self]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncGenerationStream(AsyncStream[inference_pb2.GenerateResponse, Token]):
    """The tokens of a generation, as they come."""

    def __init__(
        self, events: AsyncGenerator[inference_pb2.GenerateResponse], on_progress: OnProgress | None = None
    ) -> None:
        super().__init__(events)
        self._on_progress = on_progress
        self._started: GenerationStarted | None = None
        self._finished: GenerationFinished | None = None

    @property
    def started(self) -> GenerationStarted | None:
        """What the server said when it accepted the request; None before."""
        return self._started

    @property
    def finished(self) -> GenerationFinished | None:
        """How the generation ended; None before, or if the stream was left early."""
        return self._finished

    @property
    def usage(self) -> Usage | None:
        """How many tokens the request is made of: at the end if it is reached, else as it started."""
        latest = self._finished or self._started
        return latest.usage if latest else None

    async def collect(self) -> Generation:
        """Waits for the end; returns all that was not iterated over yet."""
        async with self:
            tokens = tuple([token async for token in self])
        if self._finished is None:
            raise InternalError("the server ended the generation without saying why")
        return Generation(tokens, self._finished.finish_reason, self._finished.usage, self._finished.timings)

    async def text(self) -> str:
        """Waits for the end; returns the text that was not iterated over yet."""
        return (await self.collect()).text

    async def _receive(self, event: inference_pb2.GenerateResponse) -> Iterable[Token]:
        match event.WhichOneof("event"):
            case "started":
                self._started = messages.started(event.started)
            case "progress":
                await report(self._on_progress, event.progress)
            case "tokens":
                return messages.tokens(event.tokens)
            case "finished":
                self._finished = messages.finished(event.finished)
        return ()


class AsyncScoreStream(AsyncStream[inference_pb2.ScoreResponse, ScoreBlock]):
    """The scores of a text that is sent with the call, block by block."""

    def __init__(
        self, events: AsyncGenerator[inference_pb2.ScoreResponse], on_progress: OnProgress | None = None
    ) -> None:
        super().__init__(events)
        self._on_progress = on_progress
        self._summary: inference_pb2.ScoreSummary | None = None

    async def collect(self) -> Scores:
        """Waits for the end; returns the scores of the whole text. Raises RuntimeError after iterating over a part."""
        whole = concatenate(await self._all())
        if self._summary is None or self._summary.tokens != len(whole):
            raise InternalError(f"the server ended the scores early, after {len(whole):,} tokens")
        return Scores(
            whole.start_token,
            whole.logprobs,
            whole.token_ids,
            whole.text,
            whole.text_lengths,
            total_logprob=self._summary.total_logprob,
            content_bytes=self._summary.content_bytes,
            timings=messages.timings(self._summary.timings),
            notes=tuple(self._summary.notes),
        )

    async def _receive(self, event: inference_pb2.ScoreResponse) -> Iterable[ScoreBlock]:
        match event.WhichOneof("event"):
            case "progress":
                await report(self._on_progress, event.progress)
            case "scores":
                return [messages.score_block(event.scores)]
            case "summary":
                self._summary = event.summary
        return ()


class AsyncDocumentScoreStream(AsyncStream[document_pb2.ReadDocumentScoresResponse, ScoreBlock]):
    """The scores of (a range of) a document, block by block."""

    def __init__(
        self, events: AsyncGenerator[document_pb2.ReadDocumentScoresResponse], content_bytes: int | None
    ) -> None:
        super().__init__(events)
        self._content_bytes = content_bytes  # None for a part of the document

    async def collect(self) -> Scores:
        """Waits for the end; returns the scores of the whole range. Raises RuntimeError after iterating over a part."""
        whole = concatenate(await self._all())
        return Scores(
            whole.start_token,
            whole.logprobs,
            whole.token_ids,
            whole.text,
            whole.text_lengths,
            total_logprob=total(whole.logprobs),
            content_bytes=self._content_bytes,
        )

    async def _receive(self, event: document_pb2.ReadDocumentScoresResponse) -> Iterable[ScoreBlock]:
        return [messages.score_block(event.scores)]
