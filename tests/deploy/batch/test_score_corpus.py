"""A corpus is scored as the engine scores it, whoever dies meanwhile: with a real Ray of two CPUs."""

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from benchmarks.serving import reformer
from reformer_core import Engine, load_model
from reformer_core.tokenizers import ByteTokenizer
from reformer_server.batch import run
from reformer_server.batch.corpus import CorpusError
from reformer_server.batch.run import Progress, score_corpus
from reformer_server.batch.worker import Job, ShardWorker
from tests.deploy.batch.corpora import TEXTS

pytestmark = [  # Ray's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

POISON = b"this one kills"


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray of this module's own; what another process needs in its environment to use it."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray makes one, and keeps it in the home folder
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="ERROR")
        try:
            yield environment | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def expected(model_folder: Path) -> Callable[[bytes], "np.ndarray[Any, Any]"]:
    """The log-probabilities that the engine itself gives, on one thread like a worker of one CPU."""
    engine = Engine(load_model(model_folder, device="cpu", dtype="float32"), memory_bytes=2**28)

    def score(text: bytes) -> "np.ndarray[Any, Any]":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return engine.score(ByteTokenizer().encode(text)).numpy()
        finally:
            torch.set_num_threads(threads)

    return score


def results(job: Job) -> list[dict[str, Any]]:
    files = sorted(Path(job.output).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def is_right(job: Job, expected: Callable[[bytes], "np.ndarray[Any, Any]"]) -> bool:
    """Whether every document is there once, in order, with the engine's scores to the last bit, or with its error."""
    documents, rows = pq.read_table(job.corpus).to_pylist(), results(job)
    assert [(row["id"], row["n"]) for row in rows] == [(each["id"], each["n"]) for each in documents]
    for document, row in zip(documents, rows, strict=True):
        if row["error"] is None:
            scores = expected(document["text"])
            assert np.array(row["logprobs"], np.float32).tobytes() == scores.tobytes()
            assert row["tokens"] == len(scores)
            assert row["nats"] == -float(np.nansum(scores.astype(np.float64)))
    return True


def test_scores_are_the_engines(cluster: object, job: Job, expected: Callable[[bytes], Any]) -> None:
    said: list[Progress] = []
    done = score_corpus(job, said.append)
    assert is_right(job, expected)
    rows = results(job)
    assert [(row["error"] or "").partition(":")[0] for row in rows] == [
        *[""] * len(TEXTS), "NO_TEXT", "INVALID_TOKENS", "INVALID_TEXT", "TOO_MANY_TOKENS", "",
    ]  # fmt: skip
    assert all(row["tokens"] is row["nats"] is row["bits_per_byte"] is row["logprobs"] is None for row in rows[24:28])
    first = rows[0]
    assert first["bits_per_byte"] == pytest.approx(first["nats"] / np.log(2) / len(TEXTS[0]))
    assert first["perplexity"] == pytest.approx(np.exp(first["nats"] / (len(TEXTS[0]) - 1)))
    assert (rows[-1]["tokens"], rows[-1]["nats"], rows[-1]["perplexity"]) == (1, 0.0, None)
    assert (done.documents, done.errors, done.tokens) == (29, 4, sum(map(len, TEXTS)) + 1)
    assert done.shards == done.shards_done == 10
    assert [each.shards_done for each in said] == list(range(done.shards + 1))

    again = score_corpus(job)  # there is nothing left to do
    assert (again.shards_done, again.documents) == (done.shards, 0)


def test_a_killed_worker(cluster: object, job: Job, expected: Callable[[bytes], Any]) -> None:
    """Another process takes its place; the shard that it was at is scored again, and no other."""
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.shards_done == 1 and not killed:
            killed.extend(workers()[:1])
            os.kill(killed[0], signal.SIGKILL)

    done = score_corpus(job, kill)
    assert killed
    assert done.shards_done == done.shards
    assert is_right(job, expected)


def test_a_killed_driver(cluster: dict[str, str], job: Job, expected: Callable[[bytes], Any]) -> None:
    """What has been written is kept; the next run does the rest."""
    command = command_of(job)
    with subprocess.Popen(command, env=os.environ | cluster, stderr=subprocess.DEVNULL) as driver:
        until(lambda: len(list(Path(job.output).glob("*.parquet"))) >= 2)
        driver.kill()
    until(lambda: not workers())  # Ray ends those of a driver that is gone
    kept = {file: file.stat().st_mtime_ns for file in Path(job.output).glob("*.parquet")}
    ran = subprocess.run(command, env=os.environ | cluster, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    done = json.loads(ran.stdout)
    assert 2 <= len(kept) < done["shards"] == done["shards_done"]
    assert done["documents"] == 29 - sum(pq.read_metadata(file).num_rows for file in kept)
    assert f"{len(kept)} of {done['shards']} shards" in ran.stderr
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert is_right(job, expected)


class DyingWorker(ShardWorker):
    """Dies of a document."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        score = self._scorer.score

        def dying(text: bytes | None) -> Any:
            if text == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            return score(text)

        self._scorer.score = dying  # type: ignore[method-assign]
        return super().__call__(row)


def test_a_shard_that_kills_costs_no_other_one(
    cluster: object, job: Job, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS[:3], POISON, *TEXTS[3:6]]
    table = pa.table({"id": list(map(str, range(7))), "n": range(7), "text": texts})
    pq.write_table(table, corpus, row_group_size=1)
    monkeypatch.setattr(run, "ShardWorker", DyingWorker)
    with pytest.raises(CorpusError, match=r"1 of 7 shards have no scores"):
        score_corpus(job)
    assert [row["id"] for row in results(job)] == ["0", "1", "2", "4", "5", "6"]


def command_of(job: Job) -> list[str]:
    settings = job.settings
    return reformer(
        "score-corpus", job.corpus, job.output, "--model", settings.model, "--dtype", settings.dtype, "--memory",
        settings.memory_bytes, "--logprobs", "--shard-size", job.shard_bytes, "--worker-cpus", 1, "--json",
    )  # fmt: skip


def workers() -> list[int]:
    """The processes that score, by what Ray calls them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::MapWorker") and os.getpid() in ancestors(int(folder.name)):
            found.append(int(folder.name))
    return found


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
