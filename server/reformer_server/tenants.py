"""Tenants: who a call belongs to, and what each may use. A document, an id, a cached content belong to one."""

from contextvars import ContextVar, Token
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that one tenant may use at a time; None: no limit but the server's own."""

    documents: int | None = None
    document_bytes: int | None = None
    """Memory or storage that its documents take, each counted once."""
    streams: int | None = None
    """Calls that run or wait in the engine."""
    tokens_per_minute: int | None = None
    """Tokens that are read, generated and scored."""


@dataclass(frozen=True)
class Tenant:
    """A customer of the server."""

    name: str
    limits: Limits = Limits()


ANONYMOUS = Tenant("anonymous")
"""Whoever calls a server that asks for no credentials."""

_current: ContextVar[Tenant] = ContextVar("tenant", default=ANONYMOUS)


def current() -> Tenant:
    """Whose call this is."""
    return _current.get()


def enter(tenant: Tenant) -> Token[Tenant]:
    """The call that runs here, and the tasks it starts, are this tenant's; for `leave`."""
    return _current.set(tenant)


def leave(token: Token[Tenant]) -> None:
    """Undoes `enter`."""
    _current.reset(token)
