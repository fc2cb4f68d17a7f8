"""TLS over real sockets: with which certificate the server serves, and with which it can't be started."""

import asyncio
import logging
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from reformer_client import AsyncClient, UnauthenticatedError, UnavailableError
from reformer_server import Settings, SettingsError
from reformer_server.access import Access
from reformer_server.credentials import token_hash
from reformer_server.tls import TlsFiles
from tests.server.conftest import Running, Serve
from tests.server.pem_files import Files, call, chain, client_of
from tests.server.tenants_files import ONCE


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


async def test_tls_alone_on_this_machine(
    serve: Serve, files: Files, authority: trustme.CA, stranger: trustme.CA
) -> None:
    running = await serve(**files.settings())
    assert str(running.server.access) == "without credentials: loopback only, TLS"
    await call(running, authority)
    with pytest.raises(UnavailableError):
        await call(running, stranger)
    async with AsyncClient(f"localhost:{running.server.port}", retry=ONCE, timeout=10) as unencrypted:
        with pytest.raises(UnavailableError):
            await unencrypted.load()


async def test_tokens_with_tls(serve: Serve, files: Files, authority: trustme.CA) -> None:
    files.tenants.write_text(f'[tenants.acme]\ntokens = ["{token_hash("secret")}"]')
    running = await serve(**files.settings(tenants=True))
    await call(running, authority, token="secret")
    with pytest.raises(UnauthenticatedError):
        await call(running, authority)
    with pytest.raises(UnauthenticatedError, match="send a bearer token"):  # nobody has looked at the certificate
        await call(running, authority, authority.issue_cert("client.example"))


async def test_a_new_certificate_is_for_new_connections(
    serve: Serve, files: Files, authority: trustme.CA, stranger: trustme.CA
) -> None:
    running = await serve(**files.settings())
    async with client_of(running, authority) as old, old.generate("x", max_tokens=500) as stream:
        await anext(stream)
        files.write(stranger.issue_cert("localhost"))
        await until_served_by(running, stranger)
        with pytest.raises(UnavailableError):
            await call(running, authority)
        await old.load()
        assert len([token async for token in stream]) == 499


async def until_served_by(running: Running, authority: trustme.CA) -> None:
    """Connects until the server's certificate is one of this authority."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await call(running, authority)
            except UnavailableError:
                await asyncio.sleep(0.02)


async def test_a_bad_certificate_leaves_the_old_one(
    serve: Serve, files: Files, authority: trustme.CA, stranger: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    running = await serve(**files.settings())
    new = stranger.issue_cert("localhost")
    files.certificate.write_bytes(chain(new))  # without its key
    await running.until(lambda: "must be a PEM certificate and its key" in caplog.text)
    await call(running, authority)
    told = [record.levelno for record in caplog.records if record.levelno > logging.INFO]  # calls have their lines, too
    assert told == [logging.ERROR]
    files.write(new)
    await until_served_by(running, stranger)


@pytest.mark.parametrize("name", ["certificate", "key", "client_ca", "tenants"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"])
def test_bad_files_at_the_start(files: Files, name: str, content: bytes | None) -> None:
    files.tenants.write_text("[tenants.a]\ntokens = []")
    path: Path = getattr(files, name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=path.name):
        Access(Settings(**files.settings(client_ca=True, tenants=True)))


def test_keys_that_dont_fit(files: Files, authority: trustme.CA) -> None:
    other = authority.issue_cert("localhost").private_key_pem.bytes()
    encrypted = load_pem_private_key(files.key.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    for key in (other, encrypted):
        files.key.write_bytes(key)
        with pytest.raises(
            SettingsError, match=r"tls\.crt and .*tls\.key: must be a PEM certificate and its key, not enc"
        ):
            Access(Settings(**files.settings()))


def test_files_that_change_while_they_are_tried(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TlsFiles, "_try", lambda tls_files: tls_files.key.write_bytes(b"another key"))
    with pytest.raises(SettingsError, match=r"tls\.crt: was written to while it was read"):
        Access(Settings(**files.settings()))


def test_identities_that_nothing_would_prove(files: Files) -> None:
    files.tenants.write_text('[tenants.a]\nidentities = ["dns:a.example"]')
    with pytest.raises(SettingsError, match=r"tenants\.toml: tenant 'a': identities: .*set --tls-client-ca"):
        Access(Settings(**files.settings(tenants=True)))
