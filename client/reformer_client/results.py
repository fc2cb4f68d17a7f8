"""What calls return: plain, frozen, typed values."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class ContentType(Enum):
    """What the bytes of a document are."""

    TEXT = "text"
    TOKEN_IDS = "token_ids"
    IMAGE = "image"


class FinishReason(Enum):
    """Why a generation ended."""

    STOP = "stop"
    """A stop text, a stop id or the model's end-of-sequence token."""
    LENGTH = "length"
    """`max_tokens` was reached."""
    POSITIONS_EXHAUSTED = "positions_exhausted"
    """The model has no position left."""
    OTHER = "other"
    """A reason that only a newer client knows."""


@dataclass(frozen=True)
class Progress:
    """How far the server is with reading."""

    processed_tokens: int
    """The share of the work that is done, times `total_tokens`."""
    total_tokens: int
    elapsed_seconds: float
    """Since the work began; waiting in the queue not included."""

    @property
    def fraction(self) -> float:
        """The share of the work that is done, 0 to 1."""
        return self.processed_tokens / self.total_tokens if self.total_tokens else 0.0


@dataclass(frozen=True)
class Usage:
    """How many tokens a request is made of."""

    cached_tokens: int
    """Tokens of the document, read earlier."""
    prompt_tokens: int
    """Tokens of the prompt, read by this call."""
    output_tokens: int
    """Tokens generated so far."""


@dataclass(frozen=True)
class Timings:
    """Where the time went."""

    queued_seconds: float
    prefill_seconds: float
    decode_seconds: float
    first_token_seconds: float | None
    """From the arrival of the request to its first token; None if there was none."""


@dataclass(frozen=True)
class TopToken:
    """One of the most likely tokens at a step."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    text: str
    """Text that became complete with this token; empty while it may be part of a character or of a stop text. If
    several tokens arrive together, the last of them has their text."""
    logprob: float
    """Natural-log probability under the model, before temperature, penalty and filters."""
    top: tuple[TopToken, ...] = ()
    """The most likely tokens at this step, most likely first, if `top_logprobs` was set."""


@dataclass(frozen=True)
class GenerationStarted:
    """The request is valid and queued."""

    usage: Usage
    seed: int
    """The seed in use, also if the server drew it."""


@dataclass(frozen=True)
class GenerationFinished:
    """The end of a generation."""

    finish_reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True)
class Generation:
    """A finished generation."""

    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)

    @property
    def logprobs(self) -> tuple[float, ...]:
        return tuple(token.logprob for token in self.tokens)


@dataclass(frozen=True)
class DocumentInfo:
    """A document as the server describes it."""

    id: str
    content_type: ContentType
    tokens: int
    content_bytes: int
    """Size of what was uploaded, in bytes."""
    sha256: bytes
    """Digest of what was uploaded."""
    memory_bytes: int
    """Memory that the document takes on the server while it is used."""
    create_time: datetime
    expire_time: datetime
    """When its lease ends."""
    has_scores: bool
    """Whether its scores can be read."""
    cached: bool
    """Whether the server had the same content already, and computed nothing."""
    notes: tuple[str, ...] = ()
    """What the server had to change in a picture to read it."""
    stored: bool = False
    """Whether the server's store has it, so that it outlives a restart; that is so a moment after it was created."""


@dataclass(frozen=True)
class ContinuationScore:
    """The score of one continuation of a document."""

    index: int
    """Its place in the request."""
    total_logprob: float
    """Sum of the natural-log probabilities of its tokens."""
    logprobs: "memoryview[float]"
    """float32 (format "f"): each token's natural-log probability."""
    token_ids: "memoryview[int]"
    """uint32 (format "I")."""


@dataclass(frozen=True)
class ModelInfo:
    """The model that a server serves, and its limits."""

    name: str
    server_version: str
    max_tokens: int
    """The longest sequence: document, prompt and continuation together."""
    vocab_size: int
    parameters: int
    device: str
    dtype: str
    num_hashes: int
    weights_digest: bytes
    max_content_bytes: int
    max_lease_seconds: int
    tokenizer: str
    picture_height: int
    """Of the pictures that the model reads, in pixels; 0 if it reads text."""
    picture_width: int


@dataclass(frozen=True)
class Load:
    """How busy a server is."""

    running_requests: int
    waiting_requests: int
    decode_batch_size: int
    documents: int
    used_page_bytes: int
    total_page_bytes: int
    draining: bool
    weights_bytes: int
    workspace_bytes: int
    """What running requests take besides pages."""
    document_bytes: int
    """Of the used pages, those of documents."""
    stored_documents: int
    stored_bytes: int
    store_quota_bytes: int
    """0: what the store's disk has room for."""
    unstored_documents: int
    """Documents that the store is still to get."""
    running_calls: int


@dataclass(frozen=True)
class OwnedDocument:
    """A document, and what only an admin may know of it."""

    tenant: str
    """"anonymous" where there are no tenants."""
    info: DocumentInfo
    in_memory: bool
    """Whether the server has it in memory; else its first use restores it."""
    last_use_time: datetime | None
    """When a call last used it; None: it isn't in memory."""
