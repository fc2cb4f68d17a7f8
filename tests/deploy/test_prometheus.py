"""The rules are what Prometheus itself accepts and computes, for plain Prometheus and for its operator alike."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/prometheus"
OPERATIONS = ROOT / "docs/operations.md"
GROUPS = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
KUBECTL = Path(sys.executable).with_name("kubectl")  # of the extra `deploy`
ALERTS = [rule for rule in RULES if "alert" in rule]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool isn't installed (Debian: apt-get install prometheus)"
)


def promtool(*arguments: str | Path) -> None:
    ended = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_promtool
def test_prometheus_accepts_rules_and_configuration() -> None:
    promtool("check", "rules", FOLDER / "rules.yaml")
    promtool("check", "config", FOLDER / "prometheus.yaml")


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", FOLDER / "rules_test.yaml")


def test_every_alert_has_its_test() -> None:
    tests = yaml.safe_load((FOLDER / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
    assert [test["name"] for test in tests] == [alert["alert"] for alert in ALERTS]
    for test in tests:
        told = [len(each["exp_samples"]) for each in test["promql_expr_test"]]
        assert told[0] == 0, f"{test['name']} is never quiet"
        assert told[1] > 0, f"{test['name']} never fires"
        assert all(test["name"] in each["expr"] for each in test["promql_expr_test"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_alerts_say_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description", "action", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{alert['alert'].lower()}"


@pytest.mark.skipif(not OPERATIONS.exists(), reason="docs/operations.md isn't there")
def test_the_operators_page_has_a_section_for_every_alert() -> None:
    headings = re.findall(r"^#+ (\w+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert {alert["alert"] for alert in ALERTS} - set(headings) == set()


def test_rules_use_series_that_there_are() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(reformer_\w+)`", page, re.MULTILINE))
    used = {name for rule in RULES for name in re.findall(r"\breformer_\w+", rule["expr"])}
    assert {re.sub(r"_bucket$", "", name) for name in used} <= documented
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert {name for rule in RULES for name in re.findall(r"reformer:[\w:]+", rule["expr"])} <= recorded


def test_the_operators_resource_has_the_same_rules() -> None:
    resource = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text(encoding="utf-8"))
    assert (resource["apiVersion"], resource["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert resource["spec"]["groups"] == GROUPS, "run: python deploy/prometheus/generate.py"


@pytest.mark.parametrize("folder", ["prometheus", "grafana"])
def test_kustomize_renders_them(folder: str) -> None:
    ended = subprocess.run([KUBECTL, "kustomize", ROOT / "deploy" / folder], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    [resource] = yaml.safe_load_all(ended.stdout)
    if folder == "prometheus":
        assert resource["spec"]["groups"] == GROUPS
    else:
        assert resource["data"]["reformer.json"] == (ROOT / "deploy/grafana/reformer.json").read_text(encoding="utf-8")
