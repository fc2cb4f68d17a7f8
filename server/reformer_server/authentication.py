"""The link of the chain that finds out whose call it is: by its bearer token, else by its client certificate."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from reformer_server import tenants
from reformer_server.calls import Around, Call, Context
from reformer_server.credentials import Credentials
from reformer_server.errors import UnauthenticatedError
from reformer_server.tenants import Tenant

BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)

CERTIFICATE_NAMES = {"cn": "x509_common_name", "dns": "peer_dns", "uri": "peer_uri"}
"""What an identity's kind is called in gRPC's auth context. It is there only if the certificate has been verified."""


def authenticating(credentials: Callable[[], Credentials]) -> Around:
    """Makes each call its tenant's, as `credentials` say at the time; health and reflection don't pass here.

    Whoever sends a token is judged by it alone. Raises UnauthenticatedError and UnknownIdentityError.
    """

    @asynccontextmanager
    async def around(call: Call) -> AsyncIterator[None]:
        call.facts.tenant = None
        tenant = _tenant(call.context, credentials())
        call.facts.tenant = tenant.name
        with tenants.entered(tenant):
            yield

    return around


def _tenant(context: Context, credentials: Credentials) -> Tenant:
    headers = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
    if headers:
        match = BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
        if match is None:
            raise UnauthenticatedError("the call's authorization must be one header of the form 'Bearer TOKEN'")
        return credentials.of_token(match[1])
    auth_context = context.auth_context()
    if auth_context.get("x509_pem_cert"):
        return credentials.of_identities(
            {
                f"{kind}:{name.decode(errors='replace')}"
                for kind, key in CERTIFICATE_NAMES.items()
                for name in auth_context.get(key, ())
                if name
            }
        )
    raise UnauthenticatedError("this server asks for credentials; send a bearer token of a tenant")
