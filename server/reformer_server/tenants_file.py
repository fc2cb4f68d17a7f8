"""The tenants' file: TOML, a table a tenant, with its credentials and limits. `docs/tenants.md` explains it."""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from reformer_server.credentials import Credentials
from reformer_server.settings import SettingsError
from reformer_server.tenants import ANONYMOUS, Limits, Tenant
from reformer_server.units import parse_size

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TOKEN = re.compile(r"sha256:([0-9a-f]{64})")
IDENTITY = re.compile(r"(cn|dns|uri):\S(.*\S)?")

LIMITS: Mapping[str, tuple[str, Callable[[str], int]]] = {
    "documents": ("documents", int),
    "document-bytes": ("document_bytes", parse_size),
    "streams": ("streams", int),
    "tokens-per-minute": ("tokens_per_minute", int),
}
"""A key of the file: the field of Limits that it is, and what reads it."""

CREDENTIALS = ("tokens", "identities")

Credential = TypeVar("Credential", bytes, str)


def load_credentials(file: Path) -> Credentials:
    """Raises SettingsError, which names the file, the tenant and the key, and never shows what might be a secret."""
    try:
        return _credentials(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: tables in tables in tables
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"{file}: {reason}") from None


def _credentials(file: Mapping[str, Any]) -> Credentials:
    tables = file.get("tenants")
    if file.keys() != {"tenants"} or not isinstance(tables, dict) or not tables:
        raise ValueError("must have a table [tenants.NAME] for each tenant, one at least, and nothing else")
    tenants: list[Tenant] = []
    by_token_digest: dict[bytes, Tenant] = {}
    by_identity: dict[str, Tenant] = {}
    for name, table in tables.items():
        try:
            tenant = _tenant(name, table)
            _assign(tenant, "tokens", table, _token_digest, by_token_digest)
            _assign(tenant, "identities", table, _identity, by_identity)
        except ValueError as error:
            raise ValueError(f"tenant {name!r}: {error}") from None
        tenants.append(tenant)
    return Credentials(tuple(tenants), by_token_digest, by_identity)


def _tenant(name: str, table: object) -> Tenant:
    if not NAME.fullmatch(name):
        raise ValueError("a name must be 1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit")
    if name == ANONYMOUS.name:
        raise ValueError("this name is for calls without credentials; choose another one")
    if not isinstance(table, dict):
        raise ValueError(f"must be a table [tenants.{name}]")
    allowed = (*CREDENTIALS, *LIMITS, "admin")
    unknown = [key for key in table if key not in allowed]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; allowed are {', '.join(allowed)}")
    if not any(key in table for key in CREDENTIALS):
        raise ValueError("has neither tokens nor identities; an empty list shuts a tenant out")
    limits = {field: _limit(key, table[key], read) for key, (field, read) in LIMITS.items() if key in table}
    admin = table.get("admin", False)
    if not isinstance(admin, bool):
        raise ValueError(f"admin: must be true or false, but is {admin!r}")
    return Tenant(name, Limits(**limits), admin)


def _limit(key: str, value: object, read: Callable[[str], int]) -> int:
    try:
        limit = read(str(value))
    except ValueError:
        limit = 0
    if limit < 1:
        raise ValueError(f"{key}: must be 1 or more{' bytes' if read is parse_size else ''}, but is {value!r}")
    return limit


def _assign(
    tenant: Tenant,
    key: str,
    table: Mapping[str, Any],
    read: Callable[[str], Credential],
    owners: dict[Credential, Tenant],
) -> None:
    """Notes the tenant as the owner of each credential in its list."""
    values = table.get(key, [])
    if not isinstance(values, list):
        raise ValueError(f"{key}: must be a list")
    for index, value in enumerate(values):
        try:
            credential = read(value if isinstance(value, str) else "")
            if credential in owners:
                raise ValueError(f"tenant {owners[credential].name!r} has it already")
        except ValueError as error:
            raise ValueError(f"{key}[{index}]: {error}") from None
        owners[credential] = tenant


def _token_digest(text: str) -> bytes:
    match = TOKEN.fullmatch(text)
    if match is None:  # what is there may be a token, and errors are logged
        raise ValueError("must be a hash as `reformer token` shows it, 'sha256:' and 64 of 0-9 and a-f, not a token")
    return bytes.fromhex(match[1])


def _identity(text: str) -> str:
    if not IDENTITY.fullmatch(text):
        raise ValueError("must be 'cn:NAME', 'dns:NAME' or 'uri:URI', a name of a client certificate")
    return text
