"""The run: shards that have no scores yet go through a pool of Ray actors, a model each."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from reformer_server.batch.corpus import Corpus, CorpusError, Shard
from reformer_server.batch.devices import Devices
from reformer_server.batch.results import Results, Terms
from reformer_server.batch.worker import Job, ShardWorker, look

OBJECT_STORE_BYTES = 100 * 2**20  # of a Ray of our own: shards travel by name, and scores not at all


@dataclass(frozen=True)
class Progress:
    """How far a run is. Counts are this run's, but `shards_done`, which has those of earlier ones."""

    shards: int
    shards_done: int = 0
    documents: int = 0
    errors: int = 0
    """Documents that have an error instead of scores."""
    tokens: int = 0
    seconds: float = 0.0

    def after(self, done: dict[str, Any], seconds: float) -> "Progress":
        """One shard more."""
        counts = {name: getattr(self, name) + int(done[name]) for name in ("documents", "errors", "tokens")}
        return replace(self, shards_done=self.shards_done + 1, seconds=seconds, **counts)


def score_corpus(job: Job, report: Callable[[Progress], None] = lambda progress: None) -> Progress:
    """Scores what has no scores yet; in a Ray that runs already (RAY_ADDRESS), or in one of its own.

    Args:
        report: is told how far it is, first before anything is scored and then after each shard.

    Raises:
        CorpusError: corpus, folder or model can't be used; or shards failed, which the next run tries again.
        StoreUnavailableError: the folder can't be written to.
    """
    corpus = Corpus(job.corpus, job.text_column, job.result_columns)
    corpus.check_outside(job.output)
    files = {file.name: file for file in corpus.files(job.shard_bytes)}
    results = Results(job.output)  # which makes the folder
    with _ray():
        devices = Devices.of_cluster(ray.nodes(), job.settings.device, job.worker_cpus)
        # On one worker: what is wrong with the model is said once, before all of them load it.
        seen = ray.get(ray.remote(**devices.of_worker)(look).remote(job, devices))
        if isinstance(seen, str):
            raise CorpusError(seen)
        terms = Terms(job.text_column, job.with_logprobs, job.shard_bytes, devices.kind, seen)
        written = results.begin(terms, files)
        shards = [shard for file in files.values() for shard in file.shards]
        missing = [shard for shard in shards if shard.output not in written]
        progress = Progress(len(shards), shards_done=len(shards) - len(missing))
        report(progress)
        started = time.monotonic()
        for done in _scored(missing, devices, (job, devices, seen)):
            progress = progress.after(done, time.monotonic() - started)
            report(progress)
    if failed := progress.shards - progress.shards_done:
        raise CorpusError(
            f"{failed} of {progress.shards} shards have no scores, for their workers failed or died, as the log above "
            "says; the same command again tries these, and no others"
        )
    return progress


def _scored(shards: list[Shard], devices: Devices, of_worker: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """What each shard's worker has to say of it, as they are done; nothing, if all it did was fail."""
    if not shards:
        return
    rows = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards))
    pool = ActorPoolStrategy(size=min(devices.workers, len(shards)), max_tasks_in_flight_per_actor=1)
    done = rows.map(ShardWorker, fn_constructor_args=of_worker, compute=pool, **devices.of_worker)
    yield from done.iter_rows()


@contextmanager
def _ray() -> Iterator[None]:
    """Ray, as quiet as it can be; what was running already goes on running."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = not ray.is_initialized()
    if ours:
        own = {} if "RAY_ADDRESS" in os.environ else {"object_store_memory": OBJECT_STORE_BYTES}
        ray.init(logging_level=logging.WARNING, include_dashboard=False, **own)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.max_errored_blocks = -1  # a shard that fails costs no other one anything
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        if ours:
            ray.shutdown()
