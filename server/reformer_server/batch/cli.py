"""`reformer score-corpus`: its options, and what it says."""

import dataclasses
import json
import time
from typing import TYPE_CHECKING

import click

from reformer_server.errors import StoreUnavailableError
from reformer_server.options import settings_options
from reformer_server.plan import Size
from reformer_server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from reformer_server.batch.run import Progress

REPORT_SECONDS = 10.0


@click.command("score-corpus")
@click.argument("corpus", metavar="IN.parquet")
@click.argument("output", metavar="OUT_DIR")
@settings_options("model", "device", "dtype", "num_hashes", "hash_seed", "memory_bytes")
@click.option("--text-column", default="text", show_default=True, help="Column with the documents: text, or bytes.")
@click.option("--logprobs", is_flag=True, help="Also write the log-probability of each token.")
@click.option(
    "--shard-size", type=Size(), default="4MiB", show_default=True,
    help="Text of a file in OUT_DIR: about what a killed worker has to do again.",
)  # fmt: skip
@click.option(
    "--worker-cpus", type=click.IntRange(min=1), metavar="N",
    help="CPUs of a worker without a GPU. Default: all of a machine.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Say at the end what was done in one line of JSON.")
def score_corpus(
    corpus: str,
    output: str,
    text_column: str,
    logprobs: bool,
    shard_size: int,
    worker_cpus: int | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Score many documents with Ray, a worker a GPU, or on CPUs.

    IN.parquet is a file or a folder of them, with a document a row; OUT_DIR gets parquet files with the other columns
    and tokens, nats, bits_per_byte, perplexity and error. What OUT_DIR has already is not scored again. Both may be
    URLs (s3://bucket/folder). The Ray cluster is that of RAY_ADDRESS; without it, one of this machine.
    """
    try:
        from reformer_server.batch import run
        from reformer_server.batch.corpus import CorpusError
        from reformer_server.batch.worker import Job
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f'`reformer score-corpus` needs more than the server ({error}): pip install "reformer-serve[ray]"'
        ) from error
    try:
        settings = Settings.load(flags, {})
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    job = Job(corpus, output, text_column, settings, logprobs, shard_size, worker_cpus)
    try:
        done = run.score_corpus(job, _Reporter())
    except CorpusError as error:
        raise click.ClickException(str(error)) from error
    except StoreUnavailableError as error:
        raise click.ClickException(f"{error.url}: {error.reason}") from error
    click.echo(json.dumps(dataclasses.asdict(done)) if as_json else _in_words(done))


class _Reporter:
    """Says on stderr how far it is, at the beginning and then every REPORT_SECONDS."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: "Progress") -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_SECONDS
            click.echo(_in_words(progress), err=True)


def _in_words(progress: "Progress") -> str:
    speed = progress.tokens / progress.seconds if progress.seconds else 0.0
    return (
        f"{progress.shards_done:,} of {progress.shards:,} shards; this run: {progress.documents:,} documents, "
        f"{progress.errors:,} with an error, {progress.tokens:,} tokens, {speed:,.0f} a second"
    )
