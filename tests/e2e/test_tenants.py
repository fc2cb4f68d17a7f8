"""Two tenants of a server over TLS: they don't meet, and credentials and certificates change while it runs."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from benchmarks.serving import ServerProcess
from reformer_client import TLS, Client, NotFoundError, RetryPolicy, UnauthenticatedError, UnavailableError
from reformer_server.credentials import new_token, token_hash
from tests.e2e.conftest import until

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune. " * 20


def table(name: str, token: str) -> str:
    return f'[tenants.{name}]\ntokens = ["{token_hash(token)}"]\n'


def refused(client: Client, error: type[Exception]) -> bool:
    try:
        client.load()
    except error:
        return True
    return False


def test_tenants_over_tls(serve: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants, certificate, key = tmp_path / "tenants.toml", tmp_path / "tls.crt", tmp_path / "tls.key"

    def issue(authority: trustme.CA) -> None:
        leaf = authority.issue_cert("localhost")
        certificate.write_bytes(leaf.cert_chain_pems[0].bytes())
        key.write_bytes(leaf.private_key_pem.bytes())

    old, new = trustme.CA(), trustme.CA()
    issue(old)
    acmes, umbrellas = new_token(), new_token()
    tenants.write_text(table("acme", acmes) + table("umbrella", umbrellas))
    monkeypatch.setenv("REFORMER_TLS_CERTIFICATE", str(certificate))  # as in a pod, where nobody gives it flags
    monkeypatch.setenv("REFORMER_TLS_KEY", str(key))
    server = serve("--memory", "500MiB", "--tenants", tenants)

    def client(token: str, authority: trustme.CA) -> Client:
        tls, own_connection = TLS(authority.cert_pem.bytes()), [("grpc.use_local_subchannel_pool", 1)]
        address, once = f"localhost:{server.port}", RetryPolicy(max_attempts=1)
        return Client(address, token=token, tls=tls, timeout=60, retry=once, channel_options=own_connection)

    with client(acmes, old) as acme, client(umbrellas, old) as umbrella:
        document = acme.documents.create(TEXT, document_id="report")
        assert acme.documents.create(TEXT, document_id="copy").cached
        for attempt in (umbrella.documents.get, umbrella.documents.renew):
            with pytest.raises(NotFoundError) as raised:
                attempt("report")
            assert raised.value.reason == "DOCUMENT_NOT_FOUND"
        umbrella.documents.delete("report")
        assert list(umbrella.documents.list()) == []
        theirs = umbrella.documents.create(TEXT, document_id="report")
        assert not theirs.cached
        assert theirs.generate("x", max_tokens=5, seed=1).text() == document.generate("x", max_tokens=5, seed=1).text()
        assert [each.id for each in acme.documents.list()] == ["report", "copy"]

        tenants.write_text(table("umbrella", umbrellas))
        until(lambda: refused(acme, UnauthenticatedError))
        issue(new)

        def served_by_new() -> bool:
            with client(umbrellas, new) as fresh:
                return not refused(fresh, UnavailableError)

        until(served_by_new)
        assert [each.id for each in umbrella.documents.list()] == ["report"], "the old connection goes on"
    assert server.stop(signal.SIGTERM) == 0
