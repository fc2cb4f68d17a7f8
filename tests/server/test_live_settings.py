"""What SIGHUP changes, and what it leaves alone."""

import logging
from pathlib import Path

import pytest

from reformer_server.live_settings import read_again
from reformer_server.settings import Settings, SettingsError


def test_what_is_safe_changes_and_the_rest_is_told(caplog: pytest.LogCaptureFixture) -> None:
    current = Settings()
    loaded = Settings(log_level="debug", drain_grace_seconds=5.0, max_running=3, memory_bytes=1)
    settings = read_again(current, lambda: loaded)
    assert settings == Settings(log_level="debug", drain_grace_seconds=5.0)
    assert logging.getLogger("reformer_server").level == logging.DEBUG
    assert sorted(record.message for record in caplog.records) == [
        "drain-grace is now 5.0",
        "log-level is now debug",
        "max-running has changed, which needs a restart",
        "memory has changed, which needs a restart",
    ]
    caplog.clear()
    assert read_again(settings, lambda: loaded) == settings
    assert all("needs a restart" in record.message for record in caplog.records)  # still


def test_what_cannot_be_read_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Settings:
        raise SettingsError("settings.toml: unknown key 'memmory'")

    current = Settings()
    assert read_again(current, load) is current
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_file_that_cannot_be_parsed_changes_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    current, file = Settings(), tmp_path / "settings.toml"
    for content in (b"\xff", b"port = ", b"port = " + b"[" * 10_000):
        file.write_bytes(content)
        assert read_again(current, lambda: Settings.load({}, {}, file)) is current
    file.unlink()
    assert read_again(current, lambda: Settings.load({}, {}, file)) is current
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 4
    assert all(str(file) in record.message for record in caplog.records)
