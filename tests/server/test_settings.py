"""Settings: sources, precedence, and errors that name the key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_server import Settings, SettingsError
from reformer_server.units import format_size, parse_duration, parse_size, parse_yes_or_no


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GiB", 12 << 30), ("16Gi", 16 << 30), ("512M", 512 << 20), ("2GB", 2 * 10**9), ("1.5 kib", 1536), ("7", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h", 3600), ("1h30m", 5400), ("90s", 90), ("500ms", 0.5), ("7d", 604800), ("0.5", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "GiB", "12 parsecs", "-1", "1.2.3", "1hour", "nan", "1h x", "1e5", "9" * 400, "9" * 400 + "m"]
)
def test_nonsense(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with pytest.raises(ValueError, match="write"):
            parse(text)


def test_numbers_that_nobody_means() -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size("8388608TiB")
    with pytest.raises(ValueError, match=r"more than a century, 3,155,760,000 seconds"):
        parse_duration("36526d")


def test_answers() -> None:
    assert [parse_yes_or_no(text) for text in ("yes", "True", " no", "false")] == [True, True, False, False]
    for text in ("", "1", "y"):
        with pytest.raises(ValueError, match="neither yes nor no"):
            parse_yes_or_no(text)


@given(st.integers(0, 1 << 50))
def test_sizes_are_readable(size: int) -> None:
    assert parse_size(format_size(size).replace(",", "").replace(" ", "")) == pytest.approx(size, rel=0.06)


def test_defaults_need_nothing() -> None:
    settings = Settings.load({}, {})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 50051, 9464)


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "reformer.toml"
    file.write_text('memory = "1GiB"\nport = 1\nmax-running = 5\ndefault-lease = "2h"\n')
    settings = Settings.load({"port": "3", "host": None}, {"REFORMER_PORT": "2", "REFORMER_MAX_RUNNING": "6"}, file)
    assert (settings.port, settings.max_running, settings.memory_bytes) == (3, 6, 1 << 30)
    assert settings.default_lease_seconds == 7200


def test_files_and_answers(tmp_path: Path) -> None:
    file = tmp_path / "reformer.toml"
    file.write_text('host = "0.0.0.0"\nallow-anonymous = true\n')
    assert Settings.load({}, {}, file).allow_anonymous
    settings = Settings.load({"tenants": "a/tenants.toml"}, {"REFORMER_ALLOW_ANONYMOUS": "no"}, None)
    assert settings.tenants == Path("a/tenants.toml")


def test_kubernetes_service_link_is_no_setting() -> None:
    environment = {"REFORMER_PORT": "tcp://10.0.0.1:1", "REFORMER_SERVICE_HOST": "10.0.0.1"}
    assert Settings.load({}, environment) == Settings()


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({"memory_bytes": "lots"}, {}, r"memory \(from --memory\).*'lots'"),
        ({}, {"REFORMER_MEMORY": "lots"}, r"memory \(from REFORMER_MEMORY\)"),
        ({"port": "70000"}, {}, r"port: must be between 0 and 65535, but is 70000"),
        ({"port": "http"}, {}, r"port \(from --port\)"),
        ({"max_running": "0"}, {}, "max-running: must be above 0"),
        ({"default_lease_seconds": "8d"}, {}, "default-lease: must be at most max-lease"),
        ({"max_content_bytes": "1GiB"}, {}, "upload-memory: must be at least max-content"),
        ({"log_level": "loud"}, {}, "log-level"),
    ],
)
def test_errors_name_the_key(flags: dict[str, str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings.load(flags, environment)


@pytest.mark.parametrize(
    ("text", "message"),
    [("memroy = 1", "unknown key 'memroy'.*memory"), ("port = true", "port"), ("=", "reformer.toml")],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "reformer.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        Settings.load({}, {}, file)
    with pytest.raises(SettingsError, match="missing"):
        Settings.load({}, {}, tmp_path / "missing.toml")
