"""Tenants: whose a call is, and what each may use. A document, an id and a cached content belong to one tenant."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that one tenant may use at a time; None: no limit but the server's own."""

    documents: int | None = None
    document_bytes: int | None = None
    """Memory or storage that its documents take, each counted once."""
    streams: int | None = None
    """Calls that upload, generate, score or read scores."""
    tokens_per_minute: int | None = None
    """Tokens that are read, generated and scored."""


@dataclass(frozen=True)
class Tenant:
    """A customer of the server."""

    name: str
    limits: Limits = Limits()
    admin: bool = False
    """Whether it may call the AdminService."""


ANONYMOUS = Tenant("anonymous")
"""Whoever calls a server that doesn't tell its callers apart."""

_current: ContextVar[Tenant] = ContextVar("tenant", default=ANONYMOUS)


def current() -> Tenant:
    """Whose call this is."""
    return _current.get()


@contextmanager
def entered(tenant: Tenant) -> Iterator[None]:
    """The call that runs inside, and the tasks it starts, are this tenant's."""
    token = _current.set(tenant)
    try:
        yield
    finally:
        _current.reset(token)
