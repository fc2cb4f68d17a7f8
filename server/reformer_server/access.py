"""Who reaches the server and who may call it, as the settings say: TLS, tenants, or this machine only."""

import asyncio
import logging
from functools import partial

import grpc

from reformer_server.administration import admins_only
from reformer_server.authentication import authenticating
from reformer_server.calls import Around
from reformer_server.credentials import Credentials
from reformer_server.reloading import Reloaded
from reformer_server.settings import Settings, SettingsError
from reformer_server.tenants_file import load_credentials
from reformer_server.tls import Tls, TlsFiles

POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Access:
    """All that is configured about it, kept up to date by `watch`."""

    def __init__(self, settings: Settings) -> None:
        """Reads the files. Raises SettingsError."""
        self._settings = settings
        self._tls = Tls(files) if (files := _tls_files(settings)) else None
        self._tenants = Reloaded([settings.tenants], partial(_load, settings)) if settings.tenants else None

    @property
    def links(self) -> tuple[Around, ...]:
        """For the chain around each call. Without tenants all calls are the anonymous one's."""
        tenants, admins = self._tenants, admins_only(self._settings)
        return (admins,) if tenants is None else (authenticating(lambda: tenants.value), admins)

    @property
    def current(self) -> dict[str, bool]:
        """By what its files are for: whether what they say now is in force."""
        files = {"tls": None if self._tls is None else self._tls.certificates, "tenants": self._tenants}
        return {name: each.is_current for name, each in files.items() if each is not None}

    @property
    def certificate_expire_time(self) -> float | None:
        """When the server's certificate ends, if it has one."""
        return None if self._tls is None else self._tls.certificates.value.expire_time

    def listen(self, server: grpc.aio.Server) -> int:
        """Adds the port, and returns its number. Raises OSError if it can't be had."""
        settings = self._settings
        address = f"{settings.host}:{settings.port}"
        if not settings.stays_on_this_machine:
            self._warn(address)
        try:
            if self._tls is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, self._tls.server_credentials())
        except RuntimeError as error:  # gRPC knows no better class
            why = "another program listens there, or this machine has no such address"
            raise OSError(f"can't listen on {address}: {why}; --port and --host choose others") from error

    async def watch(self) -> None:
        """Reads files again that change, until it is cancelled; the log says what is wrong with them."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await asyncio.to_thread(self._poll)
            except Exception:
                logger.exception("bug while files were looked at")

    def _poll(self) -> None:
        if self._tls is not None:
            self._tls.certificates.poll()
        if self._tenants is not None:
            self._tenants.poll()

    def __str__(self) -> str:
        """For whoever starts the server: "2 tenants, TLS", "without credentials: loopback only"."""
        settings = self._settings
        encryption = "without TLS" if self._tls is None else "TLS" if settings.tls_client_ca is None else "mTLS"
        if self._tenants is not None:
            count = len(self._tenants.value.tenants)
            return f"{count} tenant{'' if count == 1 else 's'}, {encryption}"
        if settings.has_credentials:
            return f"any client certificate of {settings.tls_client_ca}, {encryption}"
        reach = "loopback only" if settings.stays_on_this_machine else "open to whoever reaches it"
        return f"without credentials: {reach}" + ("" if self._tls is None else f", {encryption}")

    def _warn(self, address: str) -> None:
        if not self._settings.has_credentials:
            logger.warning(
                "NO CREDENTIALS are asked for: whoever reaches %s may call, and read all documents (--allow-anonymous)",
                address,
            )
        elif self._tls is None:
            logger.warning(
                "NO TLS: tokens and documents reach %s unencrypted, unless something in front of it sees to that; "
                "set --tls-certificate and --tls-key",
                address,
            )


def _tls_files(settings: Settings) -> TlsFiles | None:
    if settings.tls_certificate is None or settings.tls_key is None:  # both or neither: Settings has checked it
        return None
    return TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _load(settings: Settings) -> Credentials:
    assert settings.tenants is not None
    credentials = load_credentials(settings.tenants)
    if credentials.by_identity and settings.tls_client_ca is None:
        identity, tenant = next(iter(credentials.by_identity.items()))
        raise SettingsError(
            f"{settings.tenants}: tenant {tenant.name!r}: identities: {identity!r} is a name in a client certificate, "
            "and none is asked for; set --tls-client-ca"
        )
    return credentials
