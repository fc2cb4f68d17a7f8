"""Who is let in: tokens and client certificates, and the tenants that they stand for.

A token itself is kept nowhere: not in the tenants' file, not in memory beyond its call, not in the log.
"""

import hashlib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from reformer_server.errors import UnauthenticatedError, UnknownIdentityError
from reformer_server.tenants import Tenant

TOKEN_PREFIX = "reformer_"  # so that scanners for leaked secrets can know one when they see it
TOKEN_BYTES = 32


def new_token() -> str:
    """A token with 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def token_hash(token: str) -> str:
    """A token as the tenants' file has it."""
    return f"sha256:{token_digest(token).hex()}"


def token_digest(token: str) -> bytes:
    """What stands for a token: its SHA-256. Tokens are random, so that a salt or a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True)
class Credentials:
    """What the tenants' file says."""

    tenants: tuple[Tenant, ...]
    by_token_digest: Mapping[bytes, Tenant] = field(repr=False)
    by_identity: Mapping[str, Tenant]
    """By a name in a client certificate: "cn:acme-batch", "dns:acme.example", "uri:spiffe://example/acme"."""

    def of_token(self, token: str) -> Tenant:
        """Whose token it is. Raises UnauthenticatedError.

        How long looking up a digest takes may tell something about digests, which nobody can choose; about tokens it
        tells nothing.
        """
        tenant = self.by_token_digest.get(token_digest(token))
        if tenant is None:
            raise UnauthenticatedError("this server doesn't know the bearer token; it may have been revoked")
        return tenant

    def of_identities(self, identities: Collection[str]) -> Tenant:
        """Whose client certificate it is that has these names. Raises UnknownIdentityError unless it is one's."""
        tenants = {self.by_identity[identity] for identity in identities if identity in self.by_identity}
        if len(tenants) != 1:
            raise UnknownIdentityError(identities, tenants=len(tenants))
        return tenants.pop()
