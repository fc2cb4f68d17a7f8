"""What the engine tells about a request while it works on it, and to whom.

A request's events, in order: Started once; Progress any number of times; then, by its kind, Token …, Scores …,
ContinuationScored … or DocumentReady; and last exactly one of Finished or Failed.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from reformer_core.document import Document


class FinishReason(Enum):
    """Why a request ended well."""

    STOP = "stop"  # a stop text, a stop id or the end-of-sequence token
    LENGTH = "length"  # max_tokens reached
    POSITIONS_EXHAUSTED = "positions_exhausted"  # the model has no position left
    DONE = "done"  # everything else than a generation


@dataclass(frozen=True)
class Timings:
    """Seconds a request spent in each phase so far."""

    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: float | None = None  # from submission to the first token


@dataclass(frozen=True)
class Started:
    """The request left the queue and is worked on."""

    queued_seconds: float


@dataclass(frozen=True)
class Progress:
    """The share of the work that is done, times total_tokens."""

    processed_tokens: int
    total_tokens: int
    elapsed_seconds: float


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    logprob: float  # natural log, under the model, before temperature, penalty and filters
    text: str = ""  # text that became complete with this token; empty without a tokenizer
    top: tuple[tuple[int, float], ...] = ()  # (id, logprob) of the most likely ones, if asked for


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of consecutive tokens from `start` on."""

    start: int
    logprobs: torch.Tensor  # CPU float32 [m], natural log; nan for the first token of a sequence


@dataclass(frozen=True)
class ContinuationScored:
    """Log-probabilities of one continuation's tokens."""

    index: int
    logprobs: torch.Tensor  # CPU float32 [m], natural log


@dataclass(frozen=True)
class DocumentReady:
    """The prefilled document."""

    document: "Document"


@dataclass(frozen=True)
class Finished:
    """The request ended well."""

    reason: FinishReason
    timings: Timings


@dataclass(frozen=True)
class Failed:
    """The request ended with an error: a ReformerError, or a bug's exception."""

    error: Exception
    timings: Timings


Event = Started | Progress | Token | Scores | ContinuationScored | DocumentReady | Finished | Failed


class Sink(Protocol):
    """Where a request's events go. Both methods are called on the engine's thread and must not block."""

    @property
    def owner(self) -> Hashable:
        """Whose request it is: while they wait, owners take turns. It never changes."""
        ...

    def ready(self) -> bool:
        """Whether there is room for more; while there isn't, the engine leaves the request aside."""
        ...

    def emit(self, event: Event) -> None:
        """Takes one event. Only Token, Scores and ContinuationScored wait until there is room.

        It may cancel requests. If it raises, its own request fails.
        """
        ...
