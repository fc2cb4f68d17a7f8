"""What a worker does: it loads the model once, and then reads, scores and writes one shard after the other."""

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from reformer_core import Engine
from reformer_core.errors import ReformerError
from reformer_core.placement import available_memory
from reformer_server.batch.corpus import Corpus, CorpusError, Shard
from reformer_server.batch.devices import Devices
from reformer_server.batch.results import Results
from reformer_server.batch.scorer import Scorer, result_columns, scoring_engine
from reformer_server.served_model import ServedModel, load_served_model
from reformer_server.settings import Settings
from reformer_server.store.manifest import ModelIdentity

ATTEMPTS = 3
"""Workers that may die of a shard: Ray gives it to one after the other, for ever."""


@dataclass(frozen=True)
class Job:
    """What is asked for."""

    corpus: str
    """A parquet file or a folder of them; a path or an fsspec URL, like `output`."""
    output: str
    text_column: str
    settings: Settings
    """Of which the model's count, and `memory_bytes`, for each worker."""
    with_logprobs: bool
    shard_bytes: int
    worker_cpus: int | None
    """CPUs of a worker that has no GPU; None: all of a machine."""

    @property
    def result_columns(self) -> dict[str, pa.DataType]:
        """Names and types of what is added to a document's own columns."""
        return result_columns(with_logprobs=self.with_logprobs)


class ShardWorker:
    """Is called by Ray, in a process of its own."""

    def __init__(self, job: Job, devices: Devices, expected: ModelIdentity) -> None:
        """Raises CorpusError if this machine would score otherwise than `expected`."""
        model, engine = load(job, devices)
        if model.identity != expected:
            raise CorpusError(f"{model.name} is another model here than on the first worker: {model.identity}")
        self._corpus, self._results = Corpus(job.corpus, job.text_column), Results(job.output)
        self._scorer = Scorer(engine, model.tokenizer, with_logprobs=job.with_logprobs)
        self._text_column = job.text_column

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Scores the shard that a row tells of."""
        shard = Shard(**row)
        with self._results.attempt(shard.output, ATTEMPTS):
            scores = self._scorer.table(self._corpus.read(shard), self._text_column)
            self._results.write(shard.output, scores)
        tokens = scores.column("tokens")
        return {
            "documents": len(tokens),
            "errors": tokens.null_count,
            "tokens": sum(count for count in tokens.to_pylist() if count is not None),
        }


def look(job: Job, devices: Devices) -> ModelIdentity | str:
    """Loads everything, and lets it go: which model it is; or what is wrong, in words."""
    try:
        model, _ = load(job, devices)
    except (ReformerError, OSError) as error:
        return str(error)
    return model.identity


def load(job: Job, devices: Devices) -> tuple[ServedModel, Engine]:
    """Raises what loading a model and making an engine does."""
    model = load_served_model(replace(job.settings, device=devices.kind))
    memory_bytes = job.settings.memory_bytes
    if memory_bytes is None:
        machines_share = 1 if devices.kind == "cuda" else devices.workers_a_machine
        memory_bytes = available_memory(model.model.device) // 2 // machines_share
    return model, scoring_engine(model, memory_bytes)
