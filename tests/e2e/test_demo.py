"""`make demo`: its program, run on the beginning of the novel, through real processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXCERPT_BYTES = 60_000


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first chapters of Emma."""
    path = tmp_path_factory.mktemp("texts") / "emma.txt"
    path.write_bytes((ROOT / "examples/emma.txt").read_bytes()[:EXCERPT_BYTES])
    return path


def demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "examples/demo.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def seconds(pattern: str, output: str) -> float:
    match = re.search(pattern, output)
    assert match, f"no {pattern!r} in:\n{output}"
    return float(match[1])


def test_the_whole_demo_in_a_pipe(novel: Path) -> None:
    result = demo("--novel", novel)
    assert (result.returncode, result.stderr) == (0, "")
    out = result.stdout
    steps = ["Serving", "Read", "Scored", "Continued", "Again", "Waited", "Measured", "Stopped"]
    assert [line.split()[0] for line in out.splitlines() if line.startswith(tuple(steps))] == steps
    assert "\x1b" not in out

    assert f"emma.txt: {EXCERPT_BYTES:,} bytes" in out
    assert 0 < seconds(r"Scored +([\d.]+) bits per byte", out) < 8
    # The second upload reads nothing, and the same seed gives the same words.
    assert "nothing is sent or read" in out
    first, second = re.findall(r"^CHAPTER XX\n(.*?) \.\.\.$", out, re.DOTALL | re.MULTILINE)
    assert len(second) > len("\n\nMr. Knightley")
    assert first.startswith(second)
    again = seconds(r"then ([\d.]+) s", out)
    assert again < seconds(r"Waited .*?: ([\d.]+) s", out)
    tokens = int(seconds(r'reformer_prefill_tokens_total{source="computed"} ([\d.e+]+)', out))
    uploaded = int(re.search(r"([\d,]+) tokens in", out)[1].replace(",", ""))  # type: ignore[index]
    assert uploaded < tokens < uploaded + 100  # the novel once, and two prompts


def test_a_model_that_isnt_there(tmp_path: Path) -> None:
    result = demo("--model", tmp_path / "none")
    assert result.returncode == 1
    assert "there is no such directory" in result.stderr
    assert "The server didn't start" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_novel_that_isnt_there(tmp_path: Path) -> None:
    result = demo("--novel", tmp_path / "none.txt")
    assert result.returncode == 2
    assert "there is no file" in result.stderr
