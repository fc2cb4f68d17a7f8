"""How a server is reached: address, TLS, credentials, keepalive."""

import inspect
import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from reformer_client.routing import Routing, service_config

ChannelOptions = Sequence[tuple[str, str | int]]
Token = str | Callable[[], str] | Callable[[], Awaitable[str]]
"""A bearer token, or what returns (or awaits) the current one; it is asked before every call."""


@dataclass(frozen=True)
class TLS:
    """Encrypts the connection; with `certificate` and `private_key` the client proves who it is, too (mTLS).

    Each is PEM: bytes, or the path of a file.
    """

    root_certificates: bytes | Path | None = None
    """Authorities that may have signed the server's certificate; None: gRPC's own list."""
    certificate: bytes | Path | None = None
    """The client's certificate chain."""
    private_key: bytes | Path | None = None
    """The key of `certificate`."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            missing = "certificate" if self.certificate is None else "private_key"
            raise ValueError(f"mTLS needs both certificate and private_key, but {missing} is missing")

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials for a channel; reads the files."""
        return grpc.ssl_channel_credentials(
            root_certificates=_pem(self.root_certificates),
            private_key=_pem(self.private_key),
            certificate_chain=_pem(self.certificate),
        )


@dataclass(frozen=True)
class Keepalive:
    """Pings a server that is silent, so that a dead connection is noticed while a stream waits."""

    time_seconds: float = 30.0
    """Silence before a ping. Servers hang up on clients that ping more often than they allow."""
    timeout_seconds: float = 10.0
    """How long the answer may take before the connection counts as dead."""


@dataclass(frozen=True)
class Connection:
    """Where the server is and how to reach it."""

    server: str
    tls: TLS | None = None
    token: Token | None = None
    keepalive: Keepalive = Keepalive()
    channel_options: ChannelOptions = ()
    routing: Routing | None = None

    def __post_init__(self) -> None:
        if self.routing is not None:
            service_config(self.routing)  # which says what is wrong
        if self.token is not None and self.tls is None and not _is_loopback(self.server):
            raise ValueError(
                f"a token would travel to {self.server!r} unencrypted; pass tls=TLS(...) (only addresses of this "
                "machine are spared that)"
            )

    def open(self) -> grpc.aio.Channel:
        """A channel; must be called on the event loop that will use it."""
        timeout_ms = round(self.keepalive.timeout_seconds * 1000)
        options = [
            ("grpc.keepalive_time_ms", round(self.keepalive.time_seconds * 1000)),
            ("grpc.keepalive_timeout_ms", timeout_ms),
            ("grpc.http2.ping_timeout_ms", timeout_ms),  # the one that gRPC keeps to; a minute, where it isn't set
            ("grpc.http2.max_pings_without_data", 0),  # reading a long document is silent on the client's side
            ("grpc.initial_reconnect_backoff_ms", 200),  # gRPC's own 1 s would outlast the first retries
            ("grpc.max_reconnect_backoff_ms", 5000),
            *([] if self.routing is None else [("grpc.service_config", service_config(self.routing))]),
            *self.channel_options,
        ]
        if self.tls is None:
            return grpc.aio.insecure_channel(self.server, options=options)
        return grpc.aio.secure_channel(self.server, self.tls.credentials(), options=options)

    async def authorization(self) -> list[tuple[str, str]]:
        """The metadata that proves who calls."""
        if self.token is None:
            return []
        token = self.token() if callable(self.token) else self.token
        if inspect.isawaitable(token):
            token = await token
        if not re.fullmatch(r"[!-~]+", token):
            raise ValueError("the token is empty, or has characters that no token has, such as a newline at its end")
        return [("authorization", f"Bearer {token}")]


def _pem(value: bytes | Path | None) -> bytes | None:
    return value.read_bytes() if isinstance(value, Path) else value


def _is_loopback(server: str) -> bool:
    """Whether a gRPC target (`host:port`, `dns:///…`, `ipv4:…`, `ipv6:…`, `unix:…`) stays on this machine."""
    if server.startswith(("unix:", "unix-abstract:")):
        return True
    addresses = re.sub(r"^(dns:(//[^/]*/)?|ipv[46]:)", "", server).split(",")
    return all(_is_loopback_host(re.sub(r":\d+$", "", address).strip("[]")) for address in addresses)


def _is_loopback_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
