"""All settings of the server in one frozen dataclass, from flags, environment variables or a TOML file.

A flag wins over the environment (`REFORMER_MEMORY`), that over the file (`memory = "12GiB"`), that over the default.
"""

import ipaddress
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from reformer_server.units import parse_duration, parse_size, parse_yes_or_no

ENVIRONMENT_PREFIX = "REFORMER_"
NO_STORE = "none"
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("human", "json")


class SettingsError(ValueError):
    """A setting is unknown or out of its range; the message names it and where it came from."""


_METAVARS: Mapping[Callable[[str], Any], str] = {
    str: "TEXT", int: "N", Path: "FILE", parse_size: "SIZE", parse_duration: "TIME", parse_yes_or_no: "yes|no"
}  # fmt: skip


def _setting(key: str, parse: Callable[[str], Any], default: str | None, help: str) -> Any:
    """A field; its default is written as a user would write it. None: the help says what that means."""
    metadata = {"key": key, "parse": parse, "metavar": _METAVARS[parse]}
    if default is None:
        return field(default=None, metadata={**metadata, "help": help})
    return field(default=parse(default), metadata={**metadata, "help": f"{help} Default: {default}."})


@dataclass(frozen=True)
class Settings:
    """What the server runs with. Raises SettingsError if a value is out of its range."""

    model: str | None = _setting(
        "model", str, None, "Folder, hub id or embedded:image. Default: the embedded text model."
    )
    device: str = _setting("device", str, "auto", "cpu, cuda (or cuda:1 ...), or auto.")
    dtype: str = _setting("dtype", str, "auto", "float32, bfloat16, float16, or auto.")
    num_hashes: int | None = _setting("num-hashes", int, None, "LSH hash rounds. Default: the model's.")
    hash_seed: int | None = _setting("hash-seed", int, None, "Seed of the LSH rotations. Default: the model's.")
    host: str = _setting("host", str, "127.0.0.1", "Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = _setting("port", int, "50051", "gRPC port; 0 picks a free one.")
    metrics_port: int = _setting("metrics-port", int, "9464", "HTTP port of the metrics; 0 picks a free one.")
    tenants: Path | None = _setting(
        "tenants", Path, None, "TOML file with the tenants, their credentials and limits. Default: no credentials."
    )
    tls_certificate: Path | None = _setting(
        "tls-certificate", Path, None, "PEM file of the server's certificate chain. Default: no TLS."
    )
    tls_key: Path | None = _setting("tls-key", Path, None, "PEM file of the key of --tls-certificate.")
    tls_client_ca: Path | None = _setting(
        "tls-client-ca", Path, None, "PEM file of authorities; every client must have a certificate of one (mTLS)."
    )
    allow_anonymous: bool = _setting(
        "allow-anonymous",
        parse_yes_or_no,
        "no",
        "Be open to other machines without credentials, where a mesh or a firewall decides who reaches the port.",
    )
    memory_bytes: int | None = _setting(
        "memory", parse_size, None, "For weights, documents and work, e.g. 12GiB. Default: half of what is free."
    )
    max_text_tokens: int | None = _setting(
        "max-text", int, None, "Longest text in tokens that can be scored. Default: the longest document that fits."
    )
    max_running: int = _setting("max-running", int, "64", "Requests that are worked on together.")
    max_waiting: int = _setting("max-waiting", int, "256", "Requests that may wait; further ones are refused.")
    max_content_bytes: int = _setting("max-content", parse_size, "64MiB", "Largest content of a document.")
    upload_memory_bytes: int = _setting(
        "upload-memory", parse_size, "512MiB", "Memory for content that is being uploaded."
    )
    upload_retention_seconds: float = _setting(
        "upload-retention", parse_duration, "10m", "How long a broken-off upload can be resumed."
    )
    default_lease_seconds: float = _setting(
        "default-lease", parse_duration, "1h", "Lease of a document whose creator asked for none."
    )
    max_lease_seconds: float = _setting("max-lease", parse_duration, "7d", "Longest lease that is granted.")
    store: str | None = _setting(
        "store", str, None, "Folder or fsspec URL to keep documents in, or none. Default: a folder of the user's."
    )
    store_quota_bytes: int | None = _setting(
        "store-quota", parse_size, None, "Most that the store may take. Default: what its disk has room for."
    )
    drain_grace_seconds: float = _setting(
        "drain-grace", parse_duration, "30s", "Time that running calls get to finish when the server is stopped."
    )
    keepalive_seconds: float = _setting(
        "keepalive", parse_duration, "30s", "Silence of a client after which it is asked whether it is still there."
    )
    log_level: str = _setting("log-level", str, "info", "debug, info, warning or error.")
    log_format: str = _setting("log-format", str, "human", "Lines for people, or json: an object a line.")
    traces: str | None = _setting(
        "traces", str, None, "URL of an OTLP collector (gRPC) to send traces to. Default: no traces."
    )

    def __post_init__(self) -> None:
        def require(name: str, condition: bool, allowed: str) -> None:
            if not condition:
                raise SettingsError(f"{KEYS[name]}: must be {allowed}, but is {getattr(self, name)!r}")

        require("log_level", self.log_level in LOG_LEVELS, f"one of {', '.join(LOG_LEVELS)}")
        require("log_format", self.log_format in LOG_FORMATS, f"one of {', '.join(LOG_FORMATS)}")
        require("traces", self.traces is None or "://" in self.traces, "a URL such as http://localhost:4317")
        require("host", bool(self.host), "an address")
        require("store", self.store != "", f"a folder, a URL or {NO_STORE}")
        require("store_quota_bytes", self.store_quota_bytes is None or self.store_quota_bytes > 0, "above 0")
        for name in ("port", "metrics_port"):
            require(name, 0 <= getattr(self, name) < 65536, "between 0 and 65535")
        require("memory_bytes", self.memory_bytes is None or self.memory_bytes > 0, "above 0")
        require("max_text_tokens", self.max_text_tokens is None or self.max_text_tokens > 0, "above 0")
        require("max_waiting", self.max_waiting >= 0, "0 or more")
        for name in (
            "max_running",
            "max_content_bytes",
            "default_lease_seconds",
            "max_lease_seconds",
            "keepalive_seconds",
        ):
            require(name, getattr(self, name) > 0, "above 0")
        for name in ("upload_retention_seconds", "drain_grace_seconds"):
            require(name, getattr(self, name) >= 0, "0 or more")
        self._check_access()
        require("upload_memory_bytes", self.upload_memory_bytes >= self.max_content_bytes, "at least max-content")
        require("default_lease_seconds", self.default_lease_seconds <= self.max_lease_seconds, "at most max-lease")

    @property
    def store_url(self) -> str | None:
        """Where documents are kept; None: only in memory."""
        if self.store is None:
            return str(user_data_path("reformer-serve") / "documents")
        return None if self.store == NO_STORE else self.store

    @property
    def has_credentials(self) -> bool:
        """Whether callers have to prove who they are."""
        return self.tenants is not None or self.tls_client_ca is not None

    @property
    def stays_on_this_machine(self) -> bool:
        """Whether no other machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    def _check_access(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = (
                ("tls-key", "tls-certificate") if self.tls_certificate is None else ("tls-certificate", "tls-key")
            )
            raise SettingsError(f"{missing}: is missing, but {given} is set; TLS needs both")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise SettingsError("tls-client-ca: client certificates need TLS; set tls-certificate and tls-key, too")
        if self.allow_anonymous and self.has_credentials:
            which = "tenants" if self.tenants is not None else "tls-client-ca"
            raise SettingsError(f"allow-anonymous: contradicts {which}, which asks every call for credentials")
        if not (self.stays_on_this_machine or self.has_credentials or self.allow_anonymous):
            raise SettingsError(
                f"host: {self.host!r} is open to other machines, but no credentials are configured, so that anybody "
                "could call; set --tenants or --tls-client-ca, or, if a mesh or a firewall decides who reaches the "
                "port, --allow-anonymous yes"
            )

    @classmethod
    def load(cls, flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None) -> "Settings":
        """Merges the sources; `flags` go by field name, and count where they aren't None. Raises SettingsError."""
        values = _from_file(file) if file else {}
        values |= _from_environment(environment)
        for name, text in flags.items():
            if text is not None:
                values[name] = _parse(name, text, f"--{KEYS[name]}")
        return cls(**values)


KEYS = {field.name: str(field.metadata["key"]) for field in fields(Settings)}
"""How a field is called outside: `memory_bytes` is `--memory`, `REFORMER_MEMORY`, and `memory` in the file."""


def _parse(name: str, text: object, source: str) -> Any:
    parse = next(field.metadata["parse"] for field in fields(Settings) if field.name == name)
    try:
        return parse(str(text))
    except ValueError as error:
        raise SettingsError(f"{KEYS[name]} (from {source}): {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for name, key in KEYS.items():
        variable = ENVIRONMENT_PREFIX + key.upper().replace("-", "_")
        text = environment.get(variable)
        # Kubernetes sets REFORMER_PORT=tcp://10.0.0.1:50051 in every pod beside a service that is called "reformer".
        if text is not None and not text.startswith("tcp://"):
            values[name] = _parse(name, text, variable)
    return values


def _from_file(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: tables in tables in tables
        raise SettingsError(f"{file}: {error}") from None
    names = {key: name for name, key in KEYS.items()}
    unknown = [key for key in table if key not in names]
    if unknown:
        raise SettingsError(f"{file}: unknown key {unknown[0]!r}; allowed are {', '.join(names)}")
    return {names[key]: _parse(names[key], value, str(file)) for key, value in table.items()}
