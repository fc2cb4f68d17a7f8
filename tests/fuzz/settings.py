"""Settings of the server: TOML files and environment variables."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hypothesis import strategies as st

from reformer_server.credentials import token_hash
from reformer_server.settings import ENVIRONMENT_PREFIX, KEYS, Settings, SettingsError
from reformer_server.tenants_file import load_credentials
from tests.fuzz.mutations import hostile_texts
from tests.fuzz.target import Judge, Target, of_bytes

NUMBERS = (
    "0",
    "-1",
    "1",
    "1e5",
    "12GiB",
    "1.5k",
    "9" * 400,
    "1h30m",
    "0s",
    "9" * 400 + "d",
    "٣",
    "0x10",
    "1_000",
    "inf",
)


def seeds() -> list[bytes]:
    """A file with every setting, by kind of value."""
    text = "\n".join(f'{key} = "12"' for key in KEYS.values())
    return [
        text.encode(),
        b"port = 0\nmemory = 123\ndrain-grace = 1.5\n",
        b'[table]\nhost = "a"\n',
        b"port = [[1, {a = 2}]]",
    ]


@contextmanager
def _reading() -> Iterator[Judge[bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.toml"

        def judge(content: bytes) -> None:
            file.write_bytes(content)
            _load({}, file)

        yield judge


@contextmanager
def _reading_tenants() -> Iterator[Judge[bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tenants.toml"

        def judge(content: bytes) -> None:
            file.write_bytes(content)
            with suppress(SettingsError):
                load_credentials(file)

        yield judge


def tenant_seeds() -> list[bytes]:
    """A file with all that a tenant may have."""
    text = f"""
[tenants.acme]
tokens = ["{token_hash("secret")}"]
identities = ["cn:batch", "dns:a.example", "uri:spiffe://a/b"]
documents = 3
document-bytes = "8GiB"
streams = 16
tokens-per-minute = 2_000_000
[tenants."b.c"]
tokens = []
"""
    return [text.encode(), b"[tenants]\na = " + b"[" * 5000]


@contextmanager
def _merging() -> Iterator[Judge[dict[str, str]]]:
    yield lambda values: _load({ENVIRONMENT_PREFIX + key.upper().replace("-", "_"): v for key, v in values.items()})


def _load(environment: dict[str, str], file: Path | None = None) -> None:
    try:
        settings = Settings.load({}, environment, file)
    except SettingsError:
        pass
    else:
        assert 0 < int(settings.max_lease_seconds) < 2**63, "GetModel tells it"


def _environments() -> st.SearchStrategy[dict[str, str]]:
    values = st.sampled_from(NUMBERS) | hostile_texts()
    return st.dictionaries(st.sampled_from(list(KEYS.values())), values, min_size=1, max_size=3)


FILES = of_bytes(
    "settings-files",
    "TOML files of settings with bytes changed",
    10_000,
    seeds,
    _reading,
)
TENANTS = of_bytes("tenants-files", "files of tenants with bytes changed", 10_000, tenant_seeds, _reading_tenants)
ENVIRONMENT = Target(
    "settings", "values of settings, as environment variables have them", 10_000, _environments, _merging
)
