"""`reformer doctor`: what it reports, and that it finds what is wrong."""

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from reformer_core import ReformerModel, load_model
from reformer_server import rates
from reformer_server.cli import doctor
from reformer_server.rates import copy_bytes_per_second, product_flops

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of little work: here they only have to be there."""
    monkeypatch.setitem(rates.PRODUCT_SIZE, "cpu", 32)
    monkeypatch.setattr(rates, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(rates, "LEAST_SECONDS", 0)


def examined(*arguments: str) -> tuple[Result, dict[str, dict[str, Any]]]:
    """The result, and the findings by their names."""
    result = CliRunner().invoke(doctor, [*arguments, "--json"])
    report = json.loads(result.output)
    assert report["ok"] == (result.exit_code == 0)
    return result, {finding["name"]: finding for finding in report["findings"]}


@pytest.mark.parametrize(("dtype", "computed"), [("float32", None), ("float16", "float32")])
def test_all_is_well(dtype: str, computed: str | None) -> None:
    result, findings = examined("--device", "cpu", "--dtype", dtype)
    assert result.exit_code == 0, result.output
    topics = {"versions", "placement", "speed", "memory", "embedded model", "not checked"}
    assert {finding["topic"] for finding in findings.values()} == topics
    assert findings["torch"]["value"] == torch.__version__
    assert findings["dtype"]["value"].startswith(f"{dtype} (asked for")
    assert ("products are computed in float32" in findings["dtype"]["value"]) == (computed is not None)
    assert findings["plan for 1,048,576 tokens"]["value"].split(":")[0].endswith("GiB")
    for name in ("logits", "next token", "limit"):
        assert findings[name]["ok"] is True


def test_for_people() -> None:
    result = CliRunner().invoke(doctor, ["--device", "cpu", "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert "products in float32" in result.output
    assert result.output.endswith("All is well.\n")


@pytest.mark.parametrize(
    ("arguments", "name", "message"),
    [
        (["--device", "tpu"], "device", "must be auto, cpu, cuda"),
        (["--dtype", "int8"], "device", "dtype: must be auto"),
        (["/no/such/model"], "plan", "/no/such/model"),
    ],
)
def test_what_cannot_be_examined(arguments: list[str], name: str, message: str) -> None:
    result, findings = examined(*arguments)
    assert result.exit_code == 1
    assert findings[name]["ok"] is False
    assert message in findings[name]["value"]


def test_a_model_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Any, device: Any, dtype: Any) -> ReformerModel:
        model = load_model(path, device, dtype)
        if dtype is torch.float32:  # the one that would be served
            with torch.no_grad():
                model.head.weight.neg_()
        return model

    monkeypatch.setattr("reformer_server.doctor.load_model", load)
    result, findings = examined("--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 1
    assert findings["logits"]["ok"] is findings["next token"]["ok"] is False


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_server.doctor.available_memory", lambda device: 2**20)
    result, findings = examined("--device", "cpu")
    assert result.exit_code == 1
    assert findings["limit"]["ok"] is False
    assert "give more memory" in findings["limit"]["value"]
    assert findings["logits"]["ok"] is True, "one thing that is wrong doesn't hide the others"


def test_a_rate_is_work_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_seconds", lambda work, device: 0.5)
    assert product_flops(torch.float32, CPU) == 2 * 32**3 / 0.5
    assert copy_bytes_per_second(CPU, CPU) == (1 << 16) / 0.5
