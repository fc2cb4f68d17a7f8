"""The commands `serve` and `plan`: what they refuse, and what they print. Serving itself is tested end to end."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reformer_core import Engine, MemoryPlan, save_model
from reformer_core.errors import OutOfMemoryError
from reformer_server import ServedModel
from reformer_server.cli import plan, serve
from reformer_server.fitting import Fitting

PORTS = ("--port", "0", "--metrics-port", "0")


@pytest.fixture
def directory(served_model: ServedModel, tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    save_model(served_model.model, path)
    return path


def run_plan(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(plan, [str(argument) for argument in arguments])


def test_bad_setting_is_a_usage_error() -> None:
    result = CliRunner().invoke(serve, ["--memory", "lots"])
    assert result.exit_code == 2
    assert "memory (from --memory): 'lots' is no size" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--device", "tpu"], "device"),
        (["--dtype", "int8"], "dtype"),
        (["--memory", "1KiB"], "memory: 1,024 bytes aren't enough"),
        (["--memory", "3MiB", "--max-text", "4096"], "and scoring 4,096 tokens, which take"),
        (["--max-text", "5000"], "max-text: 5,000 tokens, but the model has positions for 4,096; lower --max-text"),
    ],
)
def test_what_cannot_be_served(directory: Path, arguments: list[str], message: str) -> None:
    model = [] if "--model" in arguments else ["--model", str(directory)]
    result = CliRunner().invoke(serve, [*PORTS, *model, *arguments])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_foreign_model_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    result = CliRunner().invoke(serve, [*PORTS, "--model", str(tmp_path)])
    assert result.exit_code == 1
    assert "config.json" in result.stderr
    assert "gpt2" in result.stderr


def test_plan_as_a_table(directory: Path) -> None:
    result = run_plan(directory, "--tokens", "1000", "--memory", "1GiB")
    assert result.exit_code == 0, result.output
    for word in ("weights", "document", "workspace", "session", "total", "1,000 tokens"):
        assert word in result.output


def test_plan_as_json(directory: Path) -> None:
    result = run_plan(directory, "--dtype", "float32", "--num-hashes", "3", "--memory", "1GiB", "--json")
    facts = json.loads(result.output)
    assert (facts["tokens"], facts["num_hashes"], facts["dtype"]) == (4096, 3, "float32")
    assert facts["longest_tokens"] == 4096
    assert facts["documents"] > facts["longest_tokens"] // facts["tokens"]
    assert "no document can be longer than the model's 4,096 positions" in facts["limit"]
    parts = ("weights_bytes", "document_bytes", "workspace_bytes", "session_bytes", "step_bytes")
    assert facts["total_bytes"] == sum(facts[part] for part in parts)


def test_plan_that_does_not_fit(directory: Path) -> None:
    result = run_plan(directory, "--memory", "1MiB")
    assert result.exit_code == 1
    assert "can't read such a document: weights, 64 sessions and the shortest document take" in result.output


def test_plan_for_more_than_fits(directory: Path, served_model: ServedModel) -> None:
    """The document is too long: how much is missing, and which one would fit."""
    model = served_model.model
    shorter = MemoryPlan(model.config, model.dtype, 1000)
    memory_bytes = shorter.fixed_bytes(64) + shorter.page_bytes + shorter.tail_bytes
    result = run_plan(directory, "--dtype", "float32", "--tokens", "1500", "--memory", memory_bytes)
    assert result.exit_code == 1
    assert "are missing; 1,000 tokens would fit" in result.output
    result = run_plan(directory, "--dtype", "float32", "--memory", memory_bytes, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.output)
    assert (facts["tokens"], facts["documents"]) == (1000, 1)
    assert facts["sessions"] >= 1
    assert facts["limit"].startswith("1,000 tokens are the longest document that can be read")


def test_plan_says_what_can_be_scored_and_not_kept(directory: Path, served_model: ServedModel) -> None:
    """It is what an engine that is told so accepts, and not one token more."""
    model, sessions = served_model.model, 64
    memory_bytes = MemoryPlan(model.config, model.dtype, 3000).scoring_bytes(sessions)
    fitting = Fitting.of(MemoryPlan(model.config, model.dtype, 4096), memory_bytes, sessions)
    text = fitting.longest_text_tokens
    assert fitting.longest_tokens < 3000 <= text < 4096
    assert Engine(model, memory_bytes=memory_bytes, max_running=sessions, max_text_tokens=text).pool.total_pages > 0
    with pytest.raises(OutOfMemoryError):
        Engine(model, memory_bytes=memory_bytes, max_running=sessions, max_text_tokens=text + 1)
    result = run_plan(directory, "--dtype", "float32", "--tokens", "4096", "--memory", memory_bytes)
    assert f"Texts that it can score and not keep: {text:,} tokens, with --max-text {text}." in result.output
    assert "--max-text" not in run_plan(directory, "--memory", "1GiB").output, "all texts can be kept"


def test_plan_for_more_tokens_than_positions(directory: Path) -> None:
    result = run_plan(directory, "--tokens", "4097")
    assert result.exit_code == 2
    assert "4,096" in result.stderr


@pytest.mark.parametrize("documents", [0, 1, 7])
def test_the_plan_is_what_the_engine_does(served_model: ServedModel, documents: int) -> None:
    """As many documents as `plan` says, and not one more."""
    model, sessions = served_model.model, 64
    memory_plan = MemoryPlan(model.config, model.dtype, 1000)
    longest = MemoryPlan(model.config, model.dtype, 4096 if documents == 7 else 1000)
    memory_bytes = longest.fixed_bytes(sessions) + (documents + 1) * memory_plan.page_bytes - 1
    fitting = Fitting.of(memory_plan, memory_bytes, sessions)
    engine = Engine(model, memory_bytes=memory_bytes, max_running=sessions)
    assert fitting.documents == documents
    if documents:  # else none of these can even be read
        assert fitting.documents == engine.pool.nbytes // memory_plan.page_bytes
