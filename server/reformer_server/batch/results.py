"""The folder that scores go to: a file a shard, there whole or not at all, and a record of what made them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reformer_server.batch.corpus import CorpusError, CorpusFile
from reformer_server.errors import StoreUnavailableError
from reformer_server.store.blobs import UNFINISHED, Blobs
from reformer_server.store.manifest import ModelIdentity

RECORD = "_score_corpus.json"  # readers of parquet folders skip what begins with "_"
BEGUN = "_begun"
MAX_RECORD_BYTES = 1 << 28


@dataclass(frozen=True)
class Terms:
    """What scores depend on: those in one folder all have the same."""

    text_column: str
    with_logprobs: bool
    shard_bytes: int
    device: str
    model: ModelIdentity

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON has them."""
        return {**asdict(self), "model": self.model.model_dump()}


class Results:
    """Any thread or process may use it; only one run at a time."""

    def __init__(self, url: str) -> None:
        """Raises CorpusError."""
        try:
            self._blobs = Blobs(url)
        except StoreUnavailableError as error:
            raise CorpusError(f"{url}: {error.reason}") from error

    def begin(self, terms: Terms, files: Mapping[str, CorpusFile]) -> set[str]:
        """Names of the files that earlier runs have written, which are skipped. Clears away what they left unfinished.

        Raises CorpusError if what is there was made otherwise, or from other files.
        """
        there = {blob.name for blob in self._blobs.list()}
        for name in there:
            if name.endswith(UNFINISHED) or name.startswith(f"{BEGUN}/"):
                self._blobs.delete(name)
        now = {name: {"rows": file.rows, "digest": file.digest} for name, file in files.items()}
        before = self._record() if RECORD in there else None
        if before is None:
            if there:
                raise CorpusError(f"{self._blobs.url}: isn't empty, and no run of this command; name another folder")
            earlier = {}
        else:
            self._check(before, terms, now)
            earlier = before["files"]
        record = {"terms": terms.facts, "files": earlier | now}
        self._blobs.write(RECORD, json.dumps(record, indent=1).encode())
        return there

    @contextmanager
    def attempt(self, name: str, most: int) -> Iterator[None]:
        """Around the work on a shard. Raises CorpusError if so many workers of this run have died of it."""
        died = len(self._blobs.list(f"{BEGUN}/{name}"))
        if died >= most:
            raise CorpusError(f"{name}: {died} workers have died of this shard; it is left out")
        marker = f"{BEGUN}/{name}/{died}"
        self._blobs.write(marker, b"")
        try:
            yield
        finally:
            self._blobs.delete(marker)

    def write(self, name: str, table: pa.Table) -> None:
        """The scores of a shard."""
        writer = self._blobs.writer(name)
        try:
            file = BytesIO()
            pq.write_table(table, file, compression="zstd")
            writer.write(file.getbuffer())
            writer.commit()
        finally:
            writer.discard()

    def _record(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self._blobs.read(RECORD, MAX_RECORD_BYTES))
        except ValueError as error:
            raise CorpusError(f"{self._blobs.url}/{RECORD}: can't be read: {error}; name another folder") from error
        return record

    def _check(self, before: dict[str, Any], terms: Terms, files: Mapping[str, Any]) -> None:
        differences = [name for name, value in terms.facts.items() if before["terms"].get(name) != value]
        if differences:
            told = ", ".join(f"{name} was {before['terms'].get(name)!r}" for name in differences)
            raise CorpusError(f"{self._blobs.url}: has scores that were made otherwise ({told}); name another folder")
        changed = [name for name, facts in files.items() if before["files"].get(name, facts) != facts]
        if changed:
            raise CorpusError(
                f"{self._blobs.url}: has scores of another {changed[0]!r}, which has changed since; name another folder"
            )
