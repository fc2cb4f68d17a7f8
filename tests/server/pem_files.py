"""The PEM files of a server, as an operator puts them there, and clients over TLS."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from reformer_client import TLS, AsyncClient
from tests.server.conftest import Running
from tests.server.tenants_files import ONCE


class Files:
    """A server's files in a folder; at first, all certificates are one authority's."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.client_ca, self.tenants = folder / "client-ca.crt", folder / "tenants.toml"
        self.write(authority.issue_cert("localhost"))
        self.client_ca.write_bytes(authority.cert_pem.bytes())

    def write(self, leaf: trustme.LeafCert) -> None:
        """A certificate and its key."""
        self.certificate.write_bytes(chain(leaf))
        self.key.write_bytes(leaf.private_key_pem.bytes())

    def settings(self, *, client_ca: bool = False, tenants: bool = False) -> dict[str, Any]:
        """Settings that name these files."""
        settings = {"tls_certificate": self.certificate, "tls_key": self.key}
        if client_ca:
            settings["tls_client_ca"] = self.client_ca
        if tenants:
            settings["tenants"] = self.tenants
        return settings


def chain(leaf: trustme.LeafCert) -> bytes:
    return b"".join(pem.bytes() for pem in leaf.cert_chain_pems)


def client_of(
    running: Running, root: trustme.CA, leaf: trustme.LeafCert | None = None, token: str | None = None
) -> AsyncClient:
    """A client with a connection of its own, which trusts `root`, and has a certificate and a token, or not."""
    tls = TLS(root.cert_pem.bytes())
    if leaf is not None:
        tls = TLS(root.cert_pem.bytes(), chain(leaf), leaf.private_key_pem.bytes())
    own = [("grpc.use_local_subchannel_pool", 1)]
    address = f"localhost:{running.server.port}"
    return AsyncClient(address, tls=tls, token=token, retry=ONCE, timeout=10, channel_options=own)


async def call(
    running: Running, root: trustme.CA, leaf: trustme.LeafCert | None = None, token: str | None = None
) -> None:
    """One call over a new connection."""
    async with client_of(running, root, leaf, token) as client:
        await client.load()


def with_uri(authority: trustme.CA, uri: str) -> trustme.LeafCert:
    """A client certificate for a URI, which trustme doesn't make."""
    issuer, now = x509.load_pem_x509_certificate(authority.cert_pem.bytes()), datetime.now(UTC)
    issuer_key = load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder(issuer.subject, x509.Name([]), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return trustme.LeafCert(pem, certificate.public_bytes(Encoding.PEM), [])
