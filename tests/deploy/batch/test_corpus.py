"""What a corpus is cut into, what a folder of scores takes, and what can't be begun: without Ray."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from reformer_server.batch import run
from reformer_server.batch.corpus import CorpusError, CorpusFile
from reformer_server.batch.devices import Devices
from reformer_server.batch.results import RECORD, Results, Terms
from reformer_server.batch.run import score_corpus
from reformer_server.batch.worker import Job
from reformer_server.store.manifest import ModelIdentity


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus": "/nowhere/in.parquet"}, "/nowhere/in.parquet: there is no such file or folder"),
        ({"corpus": "nothing://"}, "nothing://: Protocol not known: nothing"),
        ({"text_column": "txt"}, "in.parquet: there is no column 'txt'; there are 'id', 'text', 'n'"),
        ({"text_column": "n"}, "in.parquet: column 'n' must hold text or bytes, but is int64"),
        ({"output": "/proc/out"}, "/proc/out: "),
    ],
)
def test_what_cannot_be_begun(job: Job, change: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before Ray is started, and before there is anything of it."""
    monkeypatch.setattr(run, "_ray", None)
    with pytest.raises(CorpusError) as caught:
        score_corpus(replace(job, **change))  # type: ignore[arg-type]
    assert str(caught.value).startswith(said)
    assert not Path(job.output).exists()


def test_a_column_with_the_name_of_a_score(job: Job) -> None:
    table = pq.read_table(job.corpus).rename_columns(["id", "text", "error"])
    pq.write_table(table, job.corpus)
    with pytest.raises(CorpusError, match=r"column 'error' has the name of a column of the scores; rename it"):
        score_corpus(job)


@pytest.mark.parametrize("names", [["text", "text", "n"], ["id", "text", "id"]])
def test_a_name_that_two_columns_have(job: Job, names: list[str]) -> None:
    pq.write_table(pq.read_table(job.corpus).rename_columns(names), job.corpus)
    with pytest.raises(CorpusError, match=rf"in.parquet: there are two columns {names[0]!r}; rename one"):
        score_corpus(job)


def test_a_folder_within_the_corpus(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run would take the scores for documents."""
    monkeypatch.setattr(run, "_ray", None)
    folder = Path(job.corpus).parent
    for output in (folder, folder / "scores", f"file://{folder}/scores", folder / "x" / ".." / "scores"):
        with pytest.raises(CorpusError, match=r"is within the corpus; name a folder outside of"):
            score_corpus(replace(job, corpus=str(folder), output=str(output)))
    with pytest.raises(TypeError):  # Ray's turn: what begins with "_" is never read
        score_corpus(replace(job, corpus=str(folder), output=str(folder / "_scores")))


TERMS = Terms(
    "text", with_logprobs=False, shard_bytes=1, device="cpu",
    model=ModelIdentity(weights="0" * 64, tokenizer="1" * 64, hashing="2" * 64, pages="float32 256"),
)  # fmt: skip


def test_a_folder_has_scores_of_one_kind(tmp_path: Path) -> None:
    results, files = Results(str(tmp_path)), {"a": CorpusFile("a", 1, "digest", ())}
    assert results.begin(TERMS, files) == set()
    assert RECORD in results.begin(TERMS, files | {"b": CorpusFile("b", 1, "digest", ())})  # more is welcome
    with pytest.raises(CorpusError, match=r"made otherwise \(text_column was 'text'\); name another folder"):
        results.begin(replace(TERMS, text_column="body"), files)
    with pytest.raises(CorpusError, match=r"scores of another 'a', which has changed since"):
        results.begin(TERMS, {"a": CorpusFile("a", 1, "another", ())})
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(CorpusError, match=r"can't be read"):
        results.begin(TERMS, files)
    (tmp_path / RECORD).unlink()
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(CorpusError, match=r"isn't empty, and no run of this command"):
        results.begin(TERMS, files)


def test_a_killed_writer_leaves_no_file_with_the_name_of_scores(tmp_path: Path) -> None:
    results = Results(str(tmp_path))
    results.begin(TERMS, {})
    with pytest.raises(RuntimeError), results.attempt("a.parquet", 3):
        raise RuntimeError
    (tmp_path / "a.parquet.123.unfinished").write_bytes(b"PAR1")
    assert results.begin(TERMS, {}) >= {RECORD}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [RECORD]


@pytest.mark.parametrize(
    ("nodes", "device", "cpus", "devices"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], "auto", None, Devices("cpu", 3, 2, 4)),
        ([{"CPU": 8.0}, {"CPU": 3.0}], "cpu", 2, Devices("cpu", 5, 4, 2)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0}], "auto", None, Devices("cuda", 4, 4, 1)),
        ([{"CPU": 8.0, "GPU": 4.0}], "cpu", None, Devices("cpu", 1, 1, 8)),
    ],
)
def test_a_worker_a_device(nodes: list[dict[str, float]], device: str, cpus: int | None, devices: Devices) -> None:
    dead = {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 1.0}}
    machines = [dead, *({"Alive": True, "Resources": node} for node in nodes)]
    assert Devices.of_cluster(machines, device, cpus) == devices


@pytest.mark.parametrize(
    ("device", "cpus", "said"),
    [
        ("cuda", None, "Ray knows of no GPU"),
        ("cuda:1", None, "must be auto, cpu or cuda, but is 'cuda:1'"),
        ("auto", 3, "worker-cpus: is 3, but the largest machine has 2; lower it"),
    ],
)
def test_no_such_device(device: str, cpus: int | None, said: str) -> None:
    with pytest.raises(CorpusError, match=said):
        Devices.of_cluster([{"Alive": True, "Resources": {"CPU": 2.0}}], device, cpus)
