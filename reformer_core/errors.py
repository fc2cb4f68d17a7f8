"""Errors of the core. Each holds what a caller needs to react; the server maps classes to status codes.

ReformerError
├── CheckpointError          a model directory that can't be loaded
├── InvalidTokensError       ids outside the vocabulary, nothing where something is needed
├── InvalidTextError         bytes that the tokenizer can't read
├── InvalidParameterError    a sampling parameter out of its range (also a ValueError)
├── TooManyTokensError       longer than the model's positions
├── OutOfMemoryError         no pages (or workspace) for it now
├── QueueFullError           too many requests are waiting
├── CancelledError           the request was cancelled by its owner
└── DeadlineExceededError    the request's deadline passed
"""

import torch


class ReformerError(Exception):
    """Base of all errors that the core raises on purpose."""


class CheckpointError(ReformerError):
    """A model directory is incomplete, damaged, or of another kind; the message names the file."""


class InvalidTokensError(ReformerError):
    """The tokens can't be used: empty, or an id that isn't in the vocabulary."""


class InvalidTextError(ReformerError):
    """The content can't be turned into tokens, e.g. bytes that are no UTF-8."""


class InvalidParameterError(ReformerError, ValueError):
    """A parameter is out of its range. `name` is the parameter's, `message` says what is allowed."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class TooManyTokensError(ReformerError):
    """The sequence is longer than the model has positions for."""

    def __init__(self, tokens: int, max_tokens: int) -> None:
        super().__init__(f"{tokens:,} tokens, but the model has positions for {max_tokens:,}")
        self.tokens = tokens
        self.max_tokens = max_tokens


class OutOfMemoryError(ReformerError):
    """There is no memory for the request now; `fits_when_idle` tells whether there ever can be."""

    def __init__(self, needed_bytes: int, free_bytes: int, *, fits_when_idle: bool = True) -> None:
        super().__init__(f"needs {needed_bytes:,} bytes, {free_bytes:,} are free")
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.fits_when_idle = fits_when_idle
        self.retry_seconds = 1.0
        """When there may be room, for whoever knows to say."""


class QueueFullError(ReformerError):
    """`waiting` requests wait already; in `retry_seconds` they should have begun."""

    def __init__(self, waiting: int, retry_seconds: float = 1.0) -> None:
        super().__init__(f"{waiting} requests are waiting already")
        self.waiting = waiting
        self.retry_seconds = retry_seconds


class CancelledError(ReformerError):
    """The request was cancelled by its owner."""


class DeadlineExceededError(ReformerError):
    """The request's deadline passed before it was finished."""


# How torch's CPU allocator says it, and how CUDA does where it is asked by others than torch's allocator.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory")


def lacks_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, or torch's, which doesn't have a class of its own for all of them."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in _NO_MEMORY)


def device_is_lost(error: BaseException) -> bool:
    """Whether the device is of no use to this process any more.

    After an error of CUDA's, whatever comes next fails, but after a lack of memory.
    """
    return isinstance(error, torch.AcceleratorError) and not lacks_memory(error)
