"""Client certificates over real sockets: who gets a connection, and as which tenant."""

import asyncio
from pathlib import Path

import pytest
import trustme

from reformer_client import PermissionDeniedError, UnauthenticatedError, UnavailableError
from reformer_server.credentials import token_hash
from tests.server.conftest import Serve
from tests.server.pem_files import Files, call, with_uri


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


async def test_identities(serve: Serve, files: Files, authority: trustme.CA) -> None:
    files.tenants.write_text(
        '[tenants.a]\nidentities = ["dns:a.example", "cn:batch of a"]\n'
        '[tenants.b]\nidentities = ["uri:spiffe://example/b", "dns:b.example"]\n'
    )
    running = await serve(**files.settings(client_ca=True, tenants=True))
    await call(running, authority, authority.issue_cert("a.example"))
    await call(running, authority, authority.issue_cert("elsewhere.example", common_name="batch of a"))
    await call(running, authority, with_uri(authority, "spiffe://example/b"))
    for unknown in (
        authority.issue_cert("c.example"),
        authority.issue_cert("c.example", common_name="a.example"),  # a CN is no DNS name
        authority.issue_cert("x.a.example"),
        with_uri(authority, "spiffe://example/b/c"),
    ):
        with pytest.raises(PermissionDeniedError, match="no tenant has") as raised:
            await call(running, authority, unknown)
        assert raised.value.reason == "UNKNOWN_IDENTITY"
        assert "cn:," not in raised.value.message
    with pytest.raises(PermissionDeniedError, match="2 tenants have"):
        await call(running, authority, authority.issue_cert("a.example", "b.example"))


async def test_a_connection_needs_a_trusted_certificate(
    serve: Serve, files: Files, authority: trustme.CA, stranger: trustme.CA
) -> None:
    files.tenants.write_text(f'[tenants.a]\nidentities = ["dns:a.example"]\ntokens = ["{token_hash("secret")}"]')
    running = await serve(**files.settings(client_ca=True, tenants=True))
    with pytest.raises(UnavailableError):
        await call(running, authority, token="secret")
    with pytest.raises(UnavailableError):
        await call(running, authority, stranger.issue_cert("a.example"), token="secret")


async def test_who_sends_a_token_is_judged_by_it(serve: Serve, files: Files, authority: trustme.CA) -> None:
    files.tenants.write_text(f'[tenants.a]\nidentities = ["dns:a.example"]\ntokens = ["{token_hash("secret")}"]')
    running = await serve(**files.settings(client_ca=True, tenants=True))
    await call(running, authority, authority.issue_cert("elsewhere.example"), token="secret")
    with pytest.raises(UnauthenticatedError):
        await call(running, authority, authority.issue_cert("a.example"), token="wrong")


async def test_a_client_authority_without_tenants(
    serve: Serve, files: Files, authority: trustme.CA, stranger: trustme.CA
) -> None:
    running = await serve(**files.settings(client_ca=True))
    assert str(running.server.access) == f"any client certificate of {files.client_ca}, mTLS"
    await call(running, authority, authority.issue_cert("client.example"))
    with pytest.raises(UnavailableError):
        await call(running, authority)
    files.client_ca.write_bytes(stranger.cert_pem.bytes())
    async with asyncio.timeout(10):
        while True:
            try:
                await call(running, authority, authority.issue_cert("client.example"))
            except UnavailableError:
                break
            await asyncio.sleep(0.02)
    await call(running, authority, stranger.issue_cert("client.example"))
