"""The server's log: a line a call, in JSON, and never a word of what it was about, however much the log tells."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import ServerProcess, serving
from reformer_client import Client
from reformer_client.errors import NotFoundError

SECRET = "Rumpelstilzchen"
TEXT = f"Today I bake, tomorrow brew; {SECRET} is my name. " * 40


@pytest.fixture(scope="module")
def verbose(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("logs")
    options = ("--model", model_directory, "--dtype", "float32", "--memory", "1GiB", "--store", folder / "store")
    log = folder / "log"
    with serving(*options, "--log-format", "json", "--log-level", "debug", threads=1, log=log) as server:
        yield server


def lines(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines()]


def calls(server: ServerProcess, method: str) -> list[dict[str, Any]]:
    """The lines of finished calls of this method; a line can be a moment later than the client's answer."""
    end = time.monotonic() + 5
    while not (found := [line for line in lines(server) if line.get("method") == method]):
        assert time.monotonic() < end, f"no line of {method} in {server.log}"
        time.sleep(0.02)
    return found


def test_each_call_has_its_line_and_none_has_content(verbose: ServerProcess) -> None:
    with Client(verbose.address, timeout=60) as client:
        document = client.documents.create(TEXT, keep_scores=True)
        generation = document.generate(f"\n{SECRET}", max_tokens=5, stop=[SECRET], seed=1).collect()
        document.score_continuations([f" {SECRET}!", " Not so."])
        scores = client.score(TEXT)
        document.scores()
        client.tokenize(SECRET)
        client.generate(SECRET, max_tokens=3).collect()
        with client.generate(SECRET, max_tokens=10_000, seed=1) as stream:
            next(stream)
        with pytest.raises(NotFoundError) as missing:
            client.documents.get("nowhere")

    [upload] = calls(verbose, "DocumentService/CreateDocument")
    assert upload["code"] == "OK"
    assert upload["tenant"] == "anonymous"
    assert upload["document_id"] == document.id
    assert upload["prompt_tokens"] == document.tokens == len(TEXT)
    assert upload["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < upload["prefill_seconds"] < upload["total_seconds"]
    assert upload["queue_seconds"] >= 0
    assert len(upload["request_id"]) == 36

    about_document, alone = calls(verbose, "InferenceService/Generate")[:2]
    assert about_document["cached_tokens"] == len(TEXT)
    assert about_document["prompt_tokens"] == len(SECRET) + 1
    assert about_document["generated_tokens"] == generation.usage.output_tokens
    assert 0 < about_document["first_token_seconds"] < about_document["total_seconds"]
    assert about_document["decode_seconds"] > 0
    assert "cached_tokens" not in alone
    assert "document_id" not in alone

    assert calls(verbose, "InferenceService/Score")[0]["scored_tokens"] == len(scores.logprobs)
    assert calls(verbose, "InferenceService/ScoreContinuations")[0]["scored_tokens"] == len(SECRET) + 2 + 8
    for method in ("DocumentService/ReadDocumentScores", "ModelService/Tokenize"):
        assert calls(verbose, method)[0]["code"] == "OK"
    [get] = calls(verbose, "DocumentService/GetDocument")
    assert (get["code"], get["reason"]) == ("NOT_FOUND", "DOCUMENT_NOT_FOUND")
    assert get["request_id"] == missing.value.request_id

    while len(calls(verbose, "InferenceService/Generate")) < 3:  # the cancelled one
        time.sleep(0.02)
    assert calls(verbose, "InferenceService/Generate")[2]["code"] == "CANCELLED"

    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines(verbose))
    assert SECRET not in verbose.log
    generated = generation.text.strip()
    assert len(generated) < 3 or generated not in verbose.log


def test_what_ends_the_server_is_a_line_too(verbose: ServerProcess, model_directory: Path, tmp_path: Path) -> None:
    """Its port is taken, by the other one."""
    log = tmp_path / "log"
    options = ("--model", model_directory, "--port", verbose.port, "--memory", "1GiB", "--log-format", "json")
    with pytest.raises(RuntimeError, match="exit code 1"), serving(*options, log=log):
        pass
    [line] = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert line["level"] == "critical"
    assert str(verbose.port) in line["message"]
