"""The page for operators and the unit that it names: each alert has its section, each section says what to do."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.serving import reformer

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/reformer.service"
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")


def test_each_alert_has_a_section_that_says_how_bad_it_is_and_what_to_do() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text(encoding="utf-8"))
    alerts = [
        (rule["alert"], rule["labels"]["severity"])
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    sections = re.findall(r"^### (\w+)\n\n\*(\w+)\.\*(.*?)(?=^### |\Z)", PAGE, re.M | re.S)
    assert [(name, severity) for name, severity, _ in sections] == alerts
    assert [name for name, _, text in sections if not ("**Look**" in text and "**Do**" in text)] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze isn't installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/reformer/bin/reformer", sys.executable))
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_systemd_starts_no_server_again_that_refuses_its_settings(tmp_path: Path) -> None:
    """And tells them from servers that ended for another reason."""
    assert "RestartPreventExitStatus=2\n" in UNIT.read_text(encoding="utf-8")
    settings = tmp_path / "settings.toml"
    for text, code in (("memroy = 1\n", 2), ('model = "/nowhere"\n', 1)):
        settings.write_text(text)
        result = subprocess.run(reformer("serve", "--config", settings, "--port", 0), capture_output=True, text=True)
        assert result.returncode == code, result.stderr


def test_systemd_waits_longer_than_the_server_drains() -> None:
    assert "TimeoutStopSec=6min" in UNIT.read_text(encoding="utf-8")
    assert 'drain-grace = "5m"' in PAGE
