"""The server's certificate, and the authorities of its clients' certificates: PEM files, read again on change."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509

from reformer_server.reloading import Reloaded
from reformer_server.settings import SettingsError


@dataclass(frozen=True)
class LoadedTls:
    """What the files said when they were read."""

    configuration: grpc.ServerCertificateConfiguration
    expire_time: float | None
    """When the first certificate of the server's chain ends; None: its form is one that only OpenSSL understands."""


@dataclass(frozen=True)
class TlsFiles:
    """Where the PEM files are."""

    certificate: Path
    """The server's chain, its own certificate first."""
    key: Path
    """The key of that certificate, not encrypted."""
    client_ca: Path | None = None
    """Authorities of client certificates; with it, every client must have one (mTLS)."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those that there are."""
        return (self.certificate, self.key) + (() if self.client_ca is None else (self.client_ca,))

    def load(self) -> LoadedTls:
        """Reads them. Raises SettingsError if it can't be used.

        gRPC itself would find out only when a client comes, so the standard library tries it first.
        """
        contents = self._read()
        self._try()
        if self._read() != contents:  # what was tried isn't what was read
            raise SettingsError(f"{self.certificate}: was written to while it was read")
        certificate, key, *client_ca = contents
        return LoadedTls(
            grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None),
            _expire_time(certificate),
        )

    def _read(self) -> list[bytes]:
        try:
            return [path.read_bytes() for path in self.paths]
        except OSError as error:
            raise SettingsError(f"{error.filename}: {error.strerror}") from None

    def _try(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password="")  # without one, it asks at the terminal
        except OSError as error:
            raise SettingsError(
                f"{self.certificate} and {self.key}: must be a PEM certificate and its key, not encrypted ({error})"
            ) from None
        try:
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except OSError as error:
            raise SettingsError(f"{self.client_ca}: must have PEM certificates of authorities ({error})") from None


class Tls:
    """TLS of the gRPC port. A new certificate is for new connections; those that are there go on."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises SettingsError."""
        self.files = files
        self.certificates = Reloaded(files.paths, files.load)
        self._given = self.certificates.value

    def server_credentials(self) -> grpc.ServerCredentials:
        """For gRPC's `add_secure_port`."""
        return grpc.dynamic_ssl_server_credentials(
            self._given.configuration,
            self._changed,  # type: ignore[arg-type]  # its None is documented, and forgotten in the stubs
            require_client_authentication=self.files.client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks before each handshake, on a thread of its own. None: what it has is good."""
        if self._given is self.certificates.value:
            return None
        self._given = self.certificates.value
        return self._given.configuration


def _expire_time(chain: bytes) -> float | None:
    try:
        return min(each.not_valid_after_utc.timestamp() for each in x509.load_pem_x509_certificates(chain))
    except (ValueError, x509.InvalidVersion):  # gRPC decides what a certificate is; this is only for the metric
        return None
