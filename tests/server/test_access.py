"""Who may reach the server: what the settings refuse, what the log warns of, and what the start says."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from reformer_server import Settings, SettingsError
from reformer_server.access import Access
from reformer_server.cli import serve as serve_command
from tests.server.conftest import Serve
from tests.server.tenants_files import client, table, write

TLS: dict[str, Any] = {"tls_certificate": Path("tls.crt"), "tls_key": Path("tls.key")}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "10.0.0.1", "example.com", "localhost.example.com"])
def test_other_machines_need_credentials(host: str) -> None:
    for tls in ({}, TLS):
        with pytest.raises(
            SettingsError, match=r"host: .* no credentials are configured.*--tenants.*--allow-anonymous"
        ):
            Settings(host=host, **tls)
    Settings(host=host, allow_anonymous=True)
    Settings(host=host, tenants=Path("tenants.toml"))
    Settings(host=host, tls_client_ca=Path("ca.crt"), **TLS)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    assert Settings(host=host).stays_on_this_machine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tls_certificate": Path("tls.crt")}, "tls-key: is missing, but tls-certificate is set"),
        ({"tls_key": Path("tls.key")}, "tls-certificate: is missing, but tls-key is set"),
        ({"tls_client_ca": Path("ca.crt")}, "tls-client-ca: client certificates need TLS"),
        ({"allow_anonymous": True, "tenants": Path("tenants.toml")}, "allow-anonymous: contradicts tenants"),
        ({"allow_anonymous": True, "tls_client_ca": Path("ca.crt"), **TLS}, "allow-anonymous: contradicts tls-client"),
    ],
)
def test_settings_that_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**settings)


async def test_without_credentials_it_says_that_it_stays_here(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    running = await serve()
    assert str(running.server.access) == "without credentials: loopback only"
    assert not caplog.records


async def test_open_to_all_is_warned_of(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    running = await serve(host="0.0.0.0", allow_anonymous=True)
    assert str(running.server.access) == "without credentials: open to whoever reaches it"
    assert "NO CREDENTIALS" in caplog.text
    async with client(running, "nobody") as nobody:
        await nobody.load()


async def test_tokens_without_tls_are_warned_of(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "tenants.toml", table("acme"), table("umbrella"))
    assert str(Access(Settings(tenants=file))) == "2 tenants, without TLS"
    running = await serve(host="0.0.0.0", tenants=file)
    assert "NO TLS" in caplog.text
    async with client(running, "acme") as acme:
        await acme.load()


def test_the_command_refuses_before_it_loads_a_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(serve_command, ["--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "no credentials are configured" in result.stderr
    bad = write(tmp_path / "tenants.toml", "[tenants.acme]")
    result = CliRunner().invoke(serve_command, ["--tenants", str(bad), "--model", "/no/such/model"])
    assert result.exit_code == 1
    assert f"Error: {bad}: tenant 'acme': has neither tokens nor identities" in result.stderr


async def test_a_bug_doesnt_end_the_watch(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "tenants.toml", table("acme"))
    running = await serve(tenants=file)
    with monkeypatch.context() as patch:
        patch.setattr(running.server.access, "_poll", lambda: 1 / 0)
        await running.until(lambda: "bug while files were looked at" in caplog.text)
    write(file, table("umbrella"), table("hooli"))
    await running.until(lambda: str(running.server.access).startswith("2 tenants"))
