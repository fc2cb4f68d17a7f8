"""Client: the blocking view of AsyncClient. Nothing is done here; the async classes hold all there is to know."""

from typing import TYPE_CHECKING, Self

from reformer_client.admin import AsyncAdmin, AsyncOwnedDocuments
from reformer_client.async_client import AsyncClient
from reformer_client.blocking import Facade, Portal, Stream, blocking, streaming
from reformer_client.connection import TLS, ChannelOptions, Keepalive, Token
from reformer_client.document import AsyncDocument, DocumentFacts
from reformer_client.documents import AsyncDocumentList, AsyncDocuments
from reformer_client.results import DocumentInfo, GenerationFinished, GenerationStarted, OwnedDocument, Usage
from reformer_client.results import Token as GeneratedToken
from reformer_client.retry import RetryPolicy
from reformer_client.routing import Routing
from reformer_client.scores import ScoreBlock
from reformer_client.streams import AsyncDocumentScoreStream, AsyncGenerationStream, AsyncScoreStream

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


class GenerationStream(Stream[AsyncGenerationStream, GeneratedToken]):
    """The tokens of a generation, as they come."""

    collect = blocking(AsyncGenerationStream.collect)
    text = blocking(AsyncGenerationStream.text)

    @property
    def started(self) -> GenerationStarted | None:
        """What the server said when it accepted the request; None before."""
        return self._wrapped.started

    @property
    def finished(self) -> GenerationFinished | None:
        """How the generation ended; None before, or if the stream was left early."""
        return self._wrapped.finished

    @property
    def usage(self) -> Usage | None:
        """How many tokens the request is made of: at the end if it is reached, else as it started."""
        return self._wrapped.usage


class ScoreStream(Stream[AsyncScoreStream, ScoreBlock]):
    """The scores of a text that is sent with the call, block by block."""

    collect = blocking(AsyncScoreStream.collect)


class DocumentScoreStream(Stream[AsyncDocumentScoreStream, ScoreBlock]):
    """The scores of (a range of) a document, block by block."""

    collect = blocking(AsyncDocumentScoreStream.collect)


class Document(Facade[AsyncDocument], DocumentFacts):
    """A document on the server. Leaving its `with` block deletes it; without one it lives until its lease ends."""

    generate = streaming(AsyncDocument.generate, GenerationStream)
    scores = blocking(AsyncDocument.scores)
    stream_scores = streaming(AsyncDocument.stream_scores, DocumentScoreStream)
    score_continuations = blocking(AsyncDocument.score_continuations)
    renew = blocking(AsyncDocument.renew)
    delete = blocking(AsyncDocument.delete)

    @property
    def info(self) -> DocumentInfo:  # type: ignore[override]
        """All that is known about the document."""
        return self._wrapped.info

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()


class DocumentList(Stream[AsyncDocumentList, Document]):
    """All documents of a server, page by page."""

    def _present(self, item: AsyncDocument) -> Document:
        return Document(self._portal, item)


class Documents(Facade[AsyncDocuments]):
    """The documents of a server: `client.documents`."""

    create = blocking(AsyncDocuments.create, Document)
    get = blocking(AsyncDocuments.get, Document)
    list = streaming(AsyncDocuments.list, DocumentList)
    renew = blocking(AsyncDocuments.renew, Document)
    delete = blocking(AsyncDocuments.delete)


class OwnedDocuments(Stream[AsyncOwnedDocuments, OwnedDocument]):
    """All tenants' documents, page by page."""


class Admin(Facade[AsyncAdmin]):
    """What operators ask of a server: `client.admin`."""

    drain = blocking(AsyncAdmin.drain)
    documents = streaming(AsyncAdmin.documents, OwnedDocuments)


class Client(Facade[AsyncClient]):
    """A client of one server; safe to share between threads. Callbacks run on the thread that made the call.

    The arguments are those of AsyncClient.
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
        client = AsyncClient(
            server,
            timeout=timeout,
            tls=tls,
            token=token,
            retry=retry,
            keepalive=keepalive,
            channel_options=channel_options,
            tracer_provider=tracer_provider,
            routing=routing,
        )
        super().__init__(Portal(at_end=client.close), client)
        self.documents = Documents(self._portal, client.documents)
        self.admin = Admin(self._portal, client.admin)

    generate = streaming(AsyncClient.generate, GenerationStream)
    score = blocking(AsyncClient.score)
    stream_scores = streaming(AsyncClient.stream_scores, ScoreStream)
    model = blocking(AsyncClient.model)
    load = blocking(AsyncClient.load)
    tokenize = blocking(AsyncClient.tokenize)
    detokenize = blocking(AsyncClient.detokenize)
    tokenize_image = blocking(AsyncClient.tokenize_image)
    detokenize_image = blocking(AsyncClient.detokenize_image)
    complete_image = blocking(AsyncClient.complete_image)

    def close(self) -> None:
        """Cancels what is running and closes the connection."""
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
