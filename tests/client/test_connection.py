"""How a server is reached: TLS, tokens, limits, imports."""

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from reformer_client import TLS, AsyncClient, Client, Keepalive, ResourceExhaustedError, RetryPolicy, UnavailableError
from reformer_client.routing import VARIABLE
from tests.client.fake_server import FakeServer

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=[False, True], ids=["TLS", "mTLS"])
def secure_server(authority: trustme.CA, request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    certificate = authority.issue_cert("localhost")
    pair = (certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())
    server = FakeServer()
    server.start(grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=request.param))
    yield server
    server.stop()


def test_tls_and_mtls(secure_server: FakeServer, authority: trustme.CA, tmp_path: Path) -> None:
    own = authority.issue_cert("client.example")
    chain, key = own.cert_chain_pems[0].bytes(), own.private_key_pem.bytes()
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "key.pem").write_bytes(key)
    tls = TLS(tmp_path / "ca.pem", certificate=chain, private_key=tmp_path / "key.pem")
    with Client(secure_server.address, tls=tls, token="secret") as client:
        assert client.model().name == "fake"
    assert secure_server.calls[-1][1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("tls", [None, TLS()], ids=["no TLS", "an authority that isn't trusted"])
def test_a_server_that_cant_be_trusted(secure_server: FakeServer, tls: TLS | None) -> None:
    with Client(secure_server.address, tls=tls, retry=ONCE) as client, pytest.raises(UnavailableError):
        client.model()


def test_mtls_needs_both_files() -> None:
    with pytest.raises(ValueError, match="private_key is missing"):
        TLS(certificate=b"x")
    with pytest.raises(ValueError, match="certificate is missing"):
        TLS(private_key=b"x")


@pytest.mark.parametrize(
    "server",
    ["localhost:1", "127.0.0.1:1", "[::1]:1", "dns:///localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1",
     "unix:/tmp/socket", "localhost"],
)  # fmt: skip
def test_tokens_may_travel_unencrypted_within_the_machine(server: str) -> None:
    AsyncClient(server, token="secret")


@pytest.mark.parametrize(
    "server",
    ["example.com:1", "10.0.0.1:1", "[2001:db8::1]:1", "dns:///example.com:1", "ipv4:127.0.0.1:1,10.0.0.1:1",
     "localhost.example.com:1", "dns://127.0.0.1/example.com:1", ":1"],
)  # fmt: skip
def test_tokens_may_not_travel_unencrypted_elsewhere(server: str) -> None:
    with pytest.raises(ValueError, match=r"unencrypted; pass tls=TLS"):
        AsyncClient(server, token="secret")
    AsyncClient(server, token="secret", tls=TLS())


async def test_tokens_are_asked_for_before_every_call(server: FakeServer) -> None:
    numbers = itertools.count()

    async def token() -> str:
        await asyncio.sleep(0)
        return f"async-{next(numbers)}"

    async with AsyncClient(server.address, token=lambda: f"sync-{next(numbers)}") as client:
        await client.model()
        await client.generate("x").text()
    async with AsyncClient(server.address, token=token) as client:
        await client.model()
    sent = [metadata["authorization"] for _, metadata in server.calls]
    assert sent == ["Bearer sync-0", "Bearer sync-1", "Bearer async-2"]


@pytest.mark.parametrize("token", ["", "secret\n", "a b", "ключ"])
def test_a_token_that_cant_be_sent(server: FakeServer, token: str) -> None:
    with Client(server.address, token=token) as client, pytest.raises(ValueError, match="no token has") as raised:
        client.model()
    assert not token or token not in str(raised.value)
    assert server.calls == []


def test_no_token_no_header(client: Client, server: FakeServer) -> None:
    client.model()
    assert "authorization" not in server.calls[-1][1]
    assert len(server.calls[-1][1]["x-request-id"]) == 36


def test_the_limit_of_messages_stays_grpcs_own(client: Client) -> None:
    assert client.tokenize("a" * 1_000_000)
    with pytest.raises(ResourceExhaustedError, match="larger than max"):
        client.detokenize([0x61] * 5_000_000)


def test_options_of_the_channel(server: FakeServer) -> None:
    options = [("grpc.max_receive_message_length", 10)]
    client = Client(server.address, keepalive=Keepalive(20, 5), channel_options=options)
    with client, pytest.raises(ResourceExhaustedError, match="larger than max"):
        client.tokenize("a" * 100)


def test_routing_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ValueError, match=f"needs {VARIABLE}=true in the environment"):
        AsyncClient("localhost:1", routing="document")
    monkeypatch.setenv(VARIABLE, "false")
    with pytest.raises(ValueError, match=f"needs {VARIABLE}=true"):
        Client("localhost:1", routing="document")
    with pytest.raises(ValueError, match="None or \"document\", but is 'x'"):
        AsyncClient("localhost:1", routing="x")  # type: ignore[arg-type]


def test_routing_over_one_server(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "true")
    with Client(server.address, routing="document") as client:
        assert client.model().name == "fake"  # it has no health service, which counts as healthy
        assert client.generate("x", max_tokens=2).text() == "ab"
        assert client.documents.create("Natasha").content_bytes == 7


def test_the_import_is_light() -> None:
    code = "import sys, reformer_client; print([m for m in ('torch', 'click', 'rich', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_a_client_that_is_never_closed_lets_the_program_end(server: FakeServer) -> None:
    code = (
        "import sys, reformer_client\n"
        "client = reformer_client.Client(sys.argv[1])\n"
        "stream = client.generate('x')\n"
        "print(next(stream).id)\n"
    )
    server.stall = True
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, server.address], capture_output=True, text=True, timeout=30
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "97\n", "")
