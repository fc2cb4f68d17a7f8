"""The command `reformer`: what it prints, and how it fails."""

import json
import math
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from reformer_client.cli import main
from reformer_client.cli.explain import explain
from reformer_client.cli.output import ProgressBar
from reformer_client.errors import ERROR_CLASSES
from reformer_client.results import Progress
from tests.client.fake_server import FakeServer

TEXT = "Natasha"


class Command:
    """Runs `reformer` against the fake server."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server

    def __call__(self, *arguments: str | Path, input: str | bytes | None = None, exit_code: int = 0) -> Result:
        environment = {"REFORMER_SERVER": self.server.address}
        result = CliRunner().invoke(main, [str(each) for each in arguments], input=input, env=environment)
        assert result.exit_code == exit_code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    def json(self, *arguments: str | Path) -> list[Any]:
        return [json.loads(line) for line in self(*arguments, "--json").stdout.splitlines()]


@pytest.fixture
def reformer(server: FakeServer) -> Command:
    return Command(server)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "war.txt"
    path.write_text(TEXT)
    return path


def test_generate(reformer: Command, server: FakeServer) -> None:
    options = (
        "--max-tokens 4 --temperature 0 --top-k 3 --top-p 0.5 --min-p 0.25 --repetition-penalty 1.5 --seed 9 "
        "--stop x --stop y --stop-id 7 --stop-id 8"
    )
    assert reformer("generate", "Anna", *options.split()).stdout == "abcd\n"
    request = server.requests[-1]
    assert request.text == "Anna"
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p) == (4, 0, 3, 0.5)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.25, 1.5, 9)
    assert (list(sampling.stop), list(sampling.stop_ids)) == (["x", "y"], [7, 8])
    reformer("generate", "Anna")
    assert server.requests[-1].sampling.ListFields() == []


def test_generate_json(reformer: Command) -> None:
    *tokens, end = reformer.json("generate", "Anna", "--max-tokens", "3", "--top-logprobs", "1")
    assert tokens[1] == {"id": 98, "text": "ab", "logprob": -0.5, "top": [{"id": 1, "logprob": -0.25}]}
    assert len(tokens) == 3
    assert end["finish_reason"] == "length"
    assert end["usage"] == {"cached_tokens": 3, "prompt_tokens": 4, "output_tokens": 3}
    assert end["timings"]["first_token_seconds"] == 1


def test_generate_from_standard_input(reformer: Command, server: FakeServer) -> None:
    reformer("generate", "-", input="Ánna\n")
    assert server.requests[-1].text == "Ánna\n"
    assert "isn't UTF-8" in reformer("generate", "-", input=b"\xff", exit_code=1).stderr


def test_generate_from_a_document(reformer: Command, server: FakeServer, file: Path) -> None:
    reformer("documents", "create", file, "--id", "war")
    assert reformer("generate", "--document", "war", "Anna", "--max-tokens", "2").stdout == "ab\n"
    assert (server.requests[-1].document_id, server.requests[-1].text) == ("war", "Anna")
    reformer("generate", "--document", "war")
    assert server.requests[-1].WhichOneof("prompt") is None
    reformer("generate", "--file", file, "--max-tokens", "2")
    assert server.count("DeleteDocument") == 1
    assert list(server.documents) == ["war"]


def test_generate_needs_something_to_continue(reformer: Command, file: Path) -> None:
    assert "nothing to continue" in reformer("generate", exit_code=2).stderr
    result = reformer("generate", "--document", "a", "--file", file, exit_code=2)
    assert "name one document" in result.stderr


def test_score(reformer: Command, file: Path) -> None:
    logprob = -sum(TEXT.encode()[1:]) / 64
    assert reformer("score", file).stdout.splitlines() == [
        "tokens         7",
        "bytes          7",
        f"bits per byte  {-logprob / math.log(2) / 7:.4f}",
        f"perplexity     {math.exp(-logprob / 6):.2f}",
    ]
    (values,) = reformer.json("score", file)
    assert values["tokens"] == values["content_bytes"] == 7
    assert values["total_logprob"] == pytest.approx(logprob)
    assert values["bits_per_byte"] == pytest.approx(-logprob / math.log(2) / 7)
    assert values["perplexity"] == pytest.approx(math.exp(-logprob / 6))
    assert reformer("score", "-", input=TEXT).stdout.startswith("tokens         7\n")
    file.write_text("N")
    (values,) = reformer.json("score", file)
    assert values["perplexity"] is None  # one token has no score


def test_documents(reformer: Command, server: FakeServer, file: Path) -> None:
    (made,) = reformer.json("documents", "create", file, "--id", "war", "--lease", "60", "--keep-scores")
    assert (made["id"], made["tokens"], made["content_type"], made["has_scores"]) == ("war", 7, "text", True)
    assert made["create_time"] == "2023-11-14T22:13:20+00:00"
    assert made["expire_time"] == "2023-11-14T22:14:20+00:00"
    assert len(made["sha256"]) == 64
    shown = reformer("documents", "show", "war").stdout
    assert "id          war\n" in shown
    assert "kept until  2023-11-14 22:14:20 UTC\n" in shown
    reformer("documents", "create", "-", "--id", "second", input=TEXT)
    assert [each["id"] for each in reformer.json("documents", "list")] == ["war", "second"]
    assert reformer("documents", "list").stdout.splitlines()[1].split() == [
        "second", "7", "tokens", "until", "2023-11-14", "23:13:20", "UTC",
    ]  # fmt: skip
    (renewed,) = reformer.json("documents", "renew", "war", "--lease", "5")
    assert renewed["expire_time"] == "2027-01-15T08:00:05+00:00"
    assert "kept until" in reformer("documents", "renew", "war").stdout
    assert reformer("documents", "delete", "war").stdout == ""
    assert reformer.json("documents", "delete", "war", "second") == [{"deleted": "war"}, {"deleted": "second"}]
    assert server.documents == {}


def test_errors_take_one_line_and_say_what_to_do(reformer: Command, server: FakeServer, file: Path) -> None:
    result = reformer("documents", "show", "war", exit_code=1)
    assert result.stdout == ""
    assert result.stderr == "Error: no document 'war'. `reformer documents list` shows what is there.\n"
    violation = error_details_pb2.BadRequest(field_violations=[{"field": "sampling.top_k", "description": "too odd"}])
    server.fail("Generate", grpc.StatusCode.INVALID_ARGUMENT, details=[violation])
    result = reformer("generate", "x", exit_code=1)
    assert result.stderr == "Error: as the test wants it (sampling.top_k: too odd)\n"
    server.fail("Score", grpc.StatusCode.INTERNAL)
    assert "request-of-the-server" in reformer("score", file, exit_code=1).stderr
    server.stall = True
    assert "--timeout" in reformer("--timeout", "0.2", "generate", "x", exit_code=1).stderr


def test_a_server_that_is_down() -> None:
    result = CliRunner().invoke(main, ["--server", "localhost:1", "--timeout", "2", "documents", "list"])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "Is a server running at localhost:1? `reformer serve` starts one" in line


def test_a_server_that_says_why_it_cant_is_running() -> None:
    said = error_details_pb2.ErrorInfo(reason="STORE_UNAVAILABLE", domain="reformer")
    line = explain(
        ERROR_CLASSES[grpc.StatusCode.UNAVAILABLE]("the document store can't be used now", details=[said]), "here:1"
    )
    assert line == "the document store can't be used now"


@pytest.mark.parametrize("code", ERROR_CLASSES, ids=lambda code: code.name)
def test_every_error_has_one_line(code: grpc.StatusCode) -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=3))
    for details in ([], [retry]):
        line = explain(ERROR_CLASSES[code]("something\n  odd.", details=details), "here:1")
        assert line.startswith("something odd.")
        assert "\n" not in line
        assert ".." not in line
    assert explain(ERROR_CLASSES[grpc.StatusCode.RESOURCE_EXHAUSTED]("full", details=[retry]), "x").endswith("in 3 s.")
    never = error_details_pb2.ErrorInfo(reason="OUT_OF_MEMORY", metadata={"fits_when_idle": "False"})
    assert "--memory" in explain(ERROR_CLASSES[grpc.StatusCode.RESOURCE_EXHAUSTED]("full", details=[never]), "x")


def test_what_the_message_says_is_not_said_again() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="sampling.top_p", description="must be 1 at most")
    details = [error_details_pb2.BadRequest(field_violations=[violation])]
    error_class = ERROR_CLASSES[grpc.StatusCode.INVALID_ARGUMENT]
    assert explain(error_class("top_p: must be 1 at most", details=details), "x") == "top_p: must be 1 at most"
    assert explain(error_class("bad", details=details), "x") == "bad (sampling.top_p: must be 1 at most)"


def test_wrong_usage(reformer: Command, tmp_path: Path) -> None:
    assert "does not exist" in reformer("score", tmp_path / "missing.txt", exit_code=2).stderr
    assert "Missing argument" in reformer("score", exit_code=2).stderr
    assert "No such command" in reformer("sing", exit_code=2).stderr
    result = CliRunner().invoke(main, ["--server", "example.com:1", "--token", "secret", "documents", "list"])
    assert result.exit_code == 1
    assert "unencrypted" in result.stderr
    assert "max_tokens can't be -1" in reformer("generate", "x", "--max-tokens", "-1", exit_code=1).stderr
    assert "must be 1 to 128 characters" in reformer("documents", "show", "дом", exit_code=1).stderr
    (tmp_path / "a.pem").write_text("x")
    result = reformer("--tls-cert", tmp_path / "a.pem", "documents", "list", exit_code=2)
    assert "private_key is missing" in result.stderr


def test_options_of_the_connection(reformer: Command, server: FakeServer) -> None:
    reformer("--token", "secret", "--timeout", "9", "documents", "list")
    assert server.calls[-1][1]["authorization"] == "Bearer secret"
    assert server.deadlines[-1] == pytest.approx(9, abs=0.5)


def test_commands_of_other_packages_are_found_without_importing_them() -> None:
    code = (
        "import sys\n"
        "from reformer_client.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'reformer_server', 'reformer_core') if m in sys.modules])\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "serve Start a server." in " ".join(output.split())
    assert output.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [("serve", "reformer_server.cli", "server"), ("train", "reformer_core.train.cli", "train")],
)
def test_commands_without_their_dependencies_say_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, command: str, module: str, extra: str
) -> None:
    for name in ("torch", module):
        monkeypatch.setitem(sys.modules, name, None)
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 1
    assert f'pip install "reformer-serve[{extra}]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_command_of_another_package_is_run_as_it_is(
    monkeypatch: pytest.MonkeyPatch, server: FakeServer, file: Path
) -> None:
    other = EntryPoints([EntryPoint("other", "reformer_client.cli.score:score", "reformer.commands")])
    monkeypatch.setattr("reformer_client.cli.group.entry_points", lambda **selected: other.select(**selected))
    reformer = Command(server)
    assert "other (from reformer_client.cli.score)" in " ".join(reformer("--help").stdout.split())
    assert "Usage: reformer other [OPTIONS] FILE" in reformer("other", "--help").stdout
    assert reformer("other", file).stdout.startswith("tokens")
    assert "Missing argument" in reformer("other", exit_code=2).stderr


def test_progress_is_drawn_on_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reformer_client.cli.output.DELAY_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    for is_terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda value=is_terminal: value)
        with ProgressBar("reading") as bar:
            bar(Progress(500, 1000, 0.5))
            time.sleep(0.2)
        drawn = capsys.readouterr()
        assert drawn.out == ""
        assert ("reading" in drawn.err) == ("500 tokens" in drawn.err) == is_terminal


def test_what_is_quick_draws_no_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ProgressBar("reading") as bar:
        bar(Progress(500, 1000, 0.5))
    assert capsys.readouterr().err == ""


def test_interrupt_ends_without_a_traceback(server: FakeServer) -> None:
    server.stall = True
    # A shell's background jobs, and so the tests in one, ignore SIGINT from the start.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heed}; from reformer_client.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "--server", server.address, "generate", "x"], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(2) == b"ab"  # then it waits for more
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr.strip()) == (1, b"Aborted!")
    server.wait_until(lambda: server.cancelled["Generate"] == 1)
