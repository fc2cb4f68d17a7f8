"""Errors of the server, each with what its caller needs. `status.py` maps them, and the core's, to gRPC statuses.

InvalidFieldError          a field of a request can't be used
DocumentNotFoundError      no such document; `expired` if there was one
DocumentNotReadyError      the document is still being uploaded or read
NoScoresError              the document was created without keep_scores
DocumentExistsError        another content has this id
UploadAbortedError         another call took the upload over, or the document was deleted meanwhile
UploadMemoryError          too much content is being uploaded at once
OtherModelError            the stored document was made by other weights
StoredDocumentDamagedError the stored document isn't whole
StoreUnavailableError      the document store can't be reached
StoreFullError             the document store has no room for a document
TenantQuotaError           the tenant has as much as it may have
UnauthenticatedError       no credentials, or wrong ones
UnknownIdentityError       a valid client certificate that is no tenant's
NotAdminError              only an admin may make this call
TooManyStreamsError        the tenant has as many calls under way as it may
TokenRateError             the tenant has used its tokens of the minute up
DrainingError              the server finishes what it has and takes nothing new
EngineStoppedError         the engine has stopped; the process is about to end
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from reformer_core.errors import InvalidTextError, InvalidTokensError


class ServerError(Exception):
    """Base of all errors that the server raises on purpose."""


class InvalidFieldError(ServerError):
    """`field` is the path of a request's field, `message` says what is wrong with it and what is allowed."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class DocumentNotFoundError(ServerError):
    """There is no document with this id, or not any more."""

    def __init__(self, document_id: str, *, expired: bool = False) -> None:
        super().__init__(
            f"the lease of document {document_id!r} has ended; upload it again"
            if expired
            else f"there is no document {document_id!r}"
        )
        self.document_id = document_id
        self.expired = expired


class DocumentNotReadyError(ServerError):
    """The document can't be used yet; `state` is "uploading" or "prefilling"."""

    def __init__(self, document_id: str, state: str) -> None:
        super().__init__(f"document {document_id!r} is still {state}; wait until CreateDocument has returned it")
        self.document_id = document_id
        self.state = state


class NoScoresError(ServerError):
    """The document holds no scores."""

    def __init__(self, document_id: str) -> None:
        super().__init__(f"document {document_id!r} holds no scores; create it with keep_scores")
        self.document_id = document_id


class DocumentExistsError(ServerError):
    """The id is taken by another content."""

    def __init__(self, document_id: str) -> None:
        super().__init__(f"document {document_id!r} exists with other content; delete it, or choose another id")
        self.document_id = document_id


class UploadAbortedError(ServerError):
    """The call lost its upload; `reason` says to whom."""

    def __init__(self, document_id: str, reason: str) -> None:
        super().__init__(f"the upload of document {document_id!r} was ended: {reason}")
        self.document_id = document_id


class UploadMemoryError(ServerError):
    """The content that is being uploaded fills the memory that is set aside for it."""

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(f"the upload needs {needed_bytes:,} bytes, {free_bytes:,} are free for uploads")
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class OtherModelError(ServerError):
    """The document was read by another model, or with other hashes; what was kept of it is of no use to this one."""

    def __init__(self, document_id: str) -> None:
        super().__init__(f"document {document_id!r} was read by another model; upload it again")
        self.document_id = document_id


class StoredDocumentDamagedError(ServerError):
    """What the store has of a document isn't what was written; it has been dropped."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stored document is damaged: {reason}; upload it again")


class StoreUnavailableError(ServerError):
    """The document store can't be reached; `url` says which, `reason` what its driver said."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__("the document store can't be used now; try again in a moment")  # paths are the server's own
        self.url = url
        self.reason = reason


class StoreFullError(ServerError):
    """The store can't keep one more document for as long as its lease says."""

    def __init__(self, needed_bytes: int, free_bytes: int, retry_seconds: float = 1.0) -> None:
        super().__init__(
            f"the document needs {needed_bytes:,} bytes of storage for its lease, {free_bytes:,} are free; "
            "delete documents, or wait until leases end"
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.retry_seconds = retry_seconds


class TenantQuotaError(ServerError):
    """The tenant would have more than it may; `resource` says of what."""

    def __init__(self, resource: str, wanted: int, limit: int) -> None:
        super().__init__(f"that would make {wanted:,} {resource}, but {limit:,} are allowed; delete documents first")
        self.resource = resource
        self.wanted = wanted
        self.limit = limit


class UnauthenticatedError(ServerError):
    """The call doesn't prove whose it is; the message says what is wrong with its credentials, and never shows them."""


class UnknownIdentityError(ServerError):
    """The client certificate is valid, and its names are those of no tenant, or of several."""

    def __init__(self, identities: Collection[str], *, tenants: int) -> None:
        names = ", ".join(sorted(identities)) or "no name that is looked at"
        whose = "no tenant has" if tenants == 0 else f"{tenants} tenants have"
        super().__init__(f"{whose} the names of this client certificate: {names}")


class NotAdminError(ServerError):
    """The caller may not operate the server; `reason` says why it isn't taken for an admin."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; only a tenant with `admin = true` in the tenants' file may make this call")


class TooManyStreamsError(ServerError):
    """The tenant has `streams` calls under way, which is its limit."""

    def __init__(self, streams: int) -> None:
        super().__init__(f"{streams:,} streaming calls are under way, as many as this tenant may have; end one first")
        self.streams = streams


class TokenRateError(ServerError):
    """The tenant must wait `retry_seconds` before it may use `tokens` more."""

    def __init__(self, tokens: int, tokens_per_minute: int, retry_seconds: float) -> None:
        super().__init__(
            f"{tokens:,} tokens are more than is left of this tenant's {tokens_per_minute:,} a minute; "
            f"they can be used in {retry_seconds:,.1f} seconds"
        )
        self.tokens = tokens
        self.tokens_per_minute = tokens_per_minute
        self.retry_seconds = retry_seconds


class DrainingError(ServerError):
    """The server is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try another one, or again in a moment")


class EngineStoppedError(ServerError):
    """The engine's thread has ended, on purpose or by a bug."""

    def __init__(self) -> None:
        super().__init__("the engine has stopped; the server will be restarted")


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Names the request's field in errors of the core about its tokens or its text."""
    try:
        yield
    except (InvalidTokensError, InvalidTextError) as error:
        raise InvalidFieldError(field, str(error)) from error
