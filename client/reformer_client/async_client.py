"""AsyncClient: a server's whole interface for asyncio."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Self, Unpack

from reformer.v1 import inference_pb2, model_pb2
from reformer_client import messages
from reformer_client.admin import AsyncAdmin
from reformer_client.calls import Caller
from reformer_client.connection import TLS, ChannelOptions, Connection, Keepalive, Token
from reformer_client.documents import AsyncDocuments
from reformer_client.errors import UnavailableError
from reformer_client.messages import Drawing, Sampling
from reformer_client.pictures import ImageCompletions, ImageSource, TokenizedImage, complete_image, image_bytes
from reformer_client.progress import OnProgress
from reformer_client.results import Load, ModelInfo
from reformer_client.retry import RetryPolicy
from reformer_client.routing import Routing
from reformer_client.scores import Scores
from reformer_client.sources import Source, SourceNotSeekableError, open_content
from reformer_client.streams import AsyncGenerationStream, AsyncScoreStream
from reformer_client.upload import chunks

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


class AsyncClient:
    """A client of one server; safe to share between tasks of one event loop.

    Args:
        server: a gRPC target, such as "localhost:50051" or "dns:///reformer.example:443".
        timeout: seconds that each call may take, streams as a whole; `timeout=` of a call comes before it. Default:
            30 s for calls with one short answer, none for uploads and streams. `math.inf`: none.
        tls: encrypts the connection, `TLS()` with gRPC's own list of authorities. Default: no encryption.
        token: a bearer token, or a (possibly async) function that returns the current one. Only with `tls`, or to
            this machine.
        retry: when and how often failed calls are tried again.
        keepalive: how dead connections are noticed.
        channel_options: further options of the gRPC channel.
        tracer_provider: makes a span of OpenTelemetry for each call, below the current one, and tells the server of it;
            `opentelemetry.trace.get_tracer_provider()` is the program's own. Default: no traces.
        routing: "document": `server` stands for several servers, as "dns:///reformer:50051" or "ipv4:10.0.0.1:50051,
            10.0.0.2:50051", and calls about a document go to the same one of them. Default: they all go to one of
            them, or to a proxy that knows.

    Every method raises ReformerError (see `reformer_client.errors`) for what goes wrong in a call.
    """

    def __init__(
        self,
        server: str = "localhost:50051",
        *,
        timeout: float | None = None,
        tls: TLS | None = None,
        token: Token | None = None,
        retry: RetryPolicy | None = None,
        keepalive: Keepalive | None = None,
        channel_options: ChannelOptions = (),
        tracer_provider: "TracerProvider | None" = None,
        routing: Routing | None = None,
    ) -> None:
        connection = Connection(server, tls, token, keepalive or Keepalive(), tuple(channel_options), routing)
        self._caller = Caller(connection, retry or RetryPolicy(), timeout, tracer_provider)
        self.documents = AsyncDocuments(self._caller)
        self.admin = AsyncAdmin(self._caller)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what is running and closes the connection."""
        await self._caller.services.close()

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncGenerationStream:
        """Continues a prompt (text or token ids) without a document; see `document.generate`."""
        request = messages.generate_message(None, prompt, sampling)
        method = self._caller.services.inference.Generate
        events = self._caller.stream(method, request, timeout=timeout, is_result=messages.is_result)
        return AsyncGenerationStream(events, on_progress)

    async def score(
        self, source: Source, *, on_progress: OnProgress | None = None, timeout: float | None = None
    ) -> Scores:
        """Scores a text (any source that `documents.create` takes); the server retains nothing of it."""
        return await self.stream_scores(source, on_progress=on_progress, timeout=timeout).collect()

    def stream_scores(
        self, source: Source, *, on_progress: OnProgress | None = None, timeout: float | None = None
    ) -> AsyncScoreStream:
        """As `score`, block by block, while they arrive."""
        return AsyncScoreStream(self._score(source, timeout), on_progress)

    async def model(self, *, timeout: float | None = None) -> ModelInfo:
        """The model and its limits."""
        method = self._caller.services.model.GetModel
        return messages.model_info(await self._caller.unary(method, model_pb2.GetModelRequest(), timeout=timeout))

    async def load(self, *, timeout: float | None = None) -> Load:
        """How busy the server is."""
        method = self._caller.services.model.GetLoad
        return messages.load(await self._caller.unary(method, model_pb2.GetLoadRequest(), timeout=timeout))

    async def tokenize(self, text: str, *, timeout: float | None = None) -> list[int]:
        """The token ids of a text of at most 512 KiB."""
        method = self._caller.services.model.Tokenize
        response = await self._caller.unary(method, model_pb2.TokenizeRequest(text=text), timeout=timeout)
        return list(response.ids)

    async def detokenize(self, ids: Sequence[int], *, timeout: float | None = None) -> str:
        """The text of at most 131,072 token ids; bytes that are no UTF-8 become U+FFFD."""
        method = self._caller.services.model.Detokenize
        request = model_pb2.DetokenizeRequest(token_ids=messages.token_ids_message(ids))
        return (await self._caller.unary(method, request, timeout=timeout)).text

    async def tokenize_image(
        self, source: ImageSource, *, resize: bool = False, timeout: float | None = None
    ) -> TokenizedImage:
        """The token ids of a picture, for a model that reads pictures.

        Args:
            source: the Path or the bytes of a PNG or JPEG file, at most 1 MB.
            resize: bring a picture of another size to the model's, which may change its proportions.
            timeout: in seconds.

        Raises TypeError or OSError for a source that can't be read, InvalidArgumentError for no such picture.
        """
        image = model_pb2.Image(data=await image_bytes(source), resize=resize)
        method = self._caller.services.model.Tokenize
        response = await self._caller.unary(method, model_pb2.TokenizeRequest(image=image), timeout=timeout)
        return TokenizedImage(tuple(response.ids), tuple(response.notes))

    async def detokenize_image(
        self, ids: Sequence[int], *, columns: int | None = None, timeout: float | None = None
    ) -> bytes:
        """A PNG file of whole rows of pixels, at most 131,072 ids.

        Args:
            ids: of the rows.
            columns: pictures side by side, for the ids of several whole ones. Default: one below the other.
            timeout: in seconds.
        """
        method = self._caller.services.model.Detokenize
        request = model_pb2.DetokenizeRequest(token_ids=messages.token_ids_message(ids), columns=columns)
        return (await self._caller.unary(method, request, timeout=timeout)).png

    async def complete_image(
        self,
        source: ImageSource,
        *,
        keep_rows: int | None = None,
        samples: int = 1,
        resize: bool = False,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **drawing: Unpack[Drawing],
    ) -> ImageCompletions:
        """Keeps a picture's first rows and has the model draw the rest, several times at once.

        The rows that are kept are read once, as a document; the samples are generations on it.

        Args:
            source: the Path or the bytes of a PNG or JPEG file, at most 1 MB.
            keep_rows: rows of pixels that stay, from the top; at least 1, below the picture's height. Default: half.
            samples: how many completions are drawn.
            resize: bring a picture of another size to the model's, which may change its proportions.
            on_progress: hears how many of all samples' tokens are drawn.
            timeout: in seconds, for each of the calls that this makes.
            drawing: temperature, top_k, top_p, min_p, repetition_penalty, and the first sample's seed; each further
                one's is one more.

        Raises TypeError, ValueError or OSError for arguments that can't be used, InvalidArgumentError if the source is
        no picture, or of another size, or if the model doesn't read pictures.
        """
        return await complete_image(self, source, keep_rows, samples, resize, on_progress, timeout, drawing)

    async def _score(self, source: Source, timeout: float | None) -> AsyncGenerator[inference_pb2.ScoreResponse]:
        """The responses of a Score call; opens the source, and closes it at the end."""
        with closing(open_content(source)) as content:
            header = inference_pb2.ScoreHeader(content_type=content.content_type, total_bytes=content.total_bytes)

            async def requests() -> AsyncGenerator[inference_pb2.ScoreRequest]:
                yield inference_pb2.ScoreRequest(header=header)
                async for chunk in chunks(content):
                    yield inference_pb2.ScoreRequest(chunk=chunk)

            method = self._caller.services.inference.Score
            try:
                events = self._caller.exchange(method, requests, timeout=timeout, is_result=messages.is_result)
                async with aclosing(events) as responses:
                    async for response in responses:
                        yield response
            except SourceNotSeekableError as error:
                raise UnavailableError(f"the connection broke, and the call can't be made again: {error}") from error
