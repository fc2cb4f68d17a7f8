"""Writes prometheusrule.yaml, which the Prometheus operator reads, from rules.yaml; needs PyYAML."""

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
RULES, GENERATED = FOLDER / "rules.yaml", FOLDER / "prometheusrule.yaml"
COMMENT = "# Generated from rules.yaml by generate.py: change that one.\n"


def prometheus_rule() -> str:
    """The same groups, as the operator's resource."""
    resource: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "reformer", "labels": {"app.kubernetes.io/name": "reformer"}},
        "spec": yaml.safe_load(RULES.read_text(encoding="utf-8")),
    }
    return COMMENT + yaml.safe_dump(resource, sort_keys=False, width=120)


if __name__ == "__main__":
    GENERATED.write_text(prometheus_rule(), encoding="utf-8")
