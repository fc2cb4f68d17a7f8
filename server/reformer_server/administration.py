"""The link of the chain that lets nobody but admins call the AdminService."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from reformer_server import tenants
from reformer_server.calls import Around, Call, Context
from reformer_server.errors import NotAdminError
from reformer_server.settings import Settings

ADMIN_METHODS = "AdminService/"
FORWARDED = ("forwarded", "via", "x-forwarded-", "x-envoy-")
"""How metadata begins that proxies add. Behind one that runs on this machine, all calls seem to come from here."""


def admins_only(settings: Settings) -> Around:
    """Comes after the link that finds out whose call it is. Raises NotAdminError."""

    @asynccontextmanager
    async def around(call: Call) -> AsyncIterator[None]:
        if call.method.startswith(ADMIN_METHODS):
            _check(settings, call.context)
        yield

    return around


def _check(settings: Settings, context: Context) -> None:
    if settings.tenants is not None:
        if not tenants.current().admin:
            raise NotAdminError(f"tenant {tenants.current().name!r} is no admin")
    elif settings.has_credentials or settings.allow_anonymous or not settings.stays_on_this_machine:
        # A client certificate says who it is, not what it may do; and a mesh hands calls on from this machine.
        raise NotAdminError("other machines reach this server, and no tenants are configured")
    elif any(key.startswith(FORWARDED) for key, _ in context.invocation_metadata() or ()):
        raise NotAdminError("a proxy has handed the call on, and no tenants are configured")
