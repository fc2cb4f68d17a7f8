"""The documents to be scored: parquet files below a path or URL, cut into shards."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

SUFFIX = ".parquet"


class CorpusError(ValueError):
    """What is to be scored can't be read, or where the scores go can't be used; the message says what to do."""


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a file, whose scores become one file: what a killed worker has to do again at most."""

    path: str
    """The file, as its file system knows it."""
    row_group: int
    start: int
    """The first row, counted in its row group."""
    rows: int
    output: str
    """Name of the file with the scores; the number in it is that of the first row, counted in the whole file."""


@dataclass(frozen=True)
class CorpusFile:
    """One file, cut up."""

    name: str
    """Below the corpus."""
    rows: int
    digest: str
    """Of its footer, which has all sizes, offsets and statistics: another content has another one."""
    shards: tuple[Shard, ...]


class Corpus:
    """A parquet file, or all of a folder: a path, or a URL that fsspec has a driver for."""

    def __init__(self, url: str, text_column: str, reserved: Collection[str] = ()) -> None:
        """`reserved` are names that no other column may have. Raises CorpusError: the URL can't be used."""
        self.url, self.text_column, self._reserved = url, text_column, reserved
        try:
            self._fs, root = fsspec.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise CorpusError(f"{url}: {error}") from None
        self._root = root.rstrip("/")

    def check_outside(self, url: str) -> None:
        """Raises CorpusError if files that are written below this URL would be some of the corpus."""
        try:
            fs, path = fsspec.url_to_fs(url)
        except (ImportError, ValueError, OSError):
            return  # whoever writes there will say so
        inside = PurePosixPath(normpath(path))
        if fs != self._fs or not inside.is_relative_to(normpath(self._root)):
            return
        if not _is_hidden(str(inside.relative_to(normpath(self._root)))):
            raise CorpusError(f"{url}: is within the corpus; name a folder outside of {self.url}")

    def files(self, shard_bytes: int) -> Iterator[CorpusFile]:
        """All files, by name, cut into shards of about so many bytes of text. Raises CorpusError."""
        names = self._names()
        if not names:
            raise CorpusError(f"{self.url}: there is no {SUFFIX} file; name one, or a folder that has some")
        for name, path in names.items():
            with self._opened(path) as parquet:
                self._check_column(name, parquet.schema_arrow)
                shards = tuple(_shards(name, path, parquet.metadata, self.text_column, shard_bytes))
                footer = repr(parquet.metadata.to_dict()).encode()
                yield CorpusFile(name, parquet.metadata.num_rows, hashlib.sha256(footer).hexdigest(), shards)

    def read(self, shard: Shard) -> pa.Table:
        """The shard's rows. Raises CorpusError if the file has changed since."""
        with self._opened(shard.path) as parquet:
            batches, first, stop = [], 0, shard.start + shard.rows
            for batch in parquet.iter_batches(shard.rows, row_groups=[shard.row_group], use_threads=False):
                begin, end = max(shard.start - first, 0), min(stop - first, batch.num_rows)
                if begin < end:
                    batches.append(batch.slice(begin, end - begin))
                first += batch.num_rows
                if first >= stop:
                    break
            table = pa.Table.from_batches(batches, schema=parquet.schema_arrow)
        if table.num_rows != shard.rows:
            raise CorpusError(f"{shard.path}: has fewer rows than when the run began; leave it alone while it is read")
        return table

    def _names(self) -> dict[str, str]:
        """Paths by names."""
        try:
            if self._fs.isfile(self._root):
                return {self._root.rpartition("/")[2]: self._root}
            if not self._fs.isdir(self._root):
                raise CorpusError(f"{self.url}: there is no such file or folder")
            found = {path[len(self._root) + 1 :]: path for path in sorted(self._fs.find(self._root))}
        except OSError as error:
            raise CorpusError(f"{self.url}: {error}") from error
        return {name: path for name, path in found.items() if name.endswith(SUFFIX) and not _is_hidden(name)}

    def _opened(self, path: str) -> "_Opened":
        return _Opened(self._fs, path)

    def _check_column(self, name: str, schema: pa.Schema) -> None:
        if twice := [column for column, count in Counter(schema.names).items() if count > 1]:
            raise CorpusError(f"{name}: there are two columns {twice[0]!r}; rename one")
        if self.text_column not in schema.names:
            raise CorpusError(
                f"{name}: there is no column {self.text_column!r}; there are {', '.join(map(repr, schema.names))}"
            )
        kind = schema.field(self.text_column).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (_is_text(value) or pa.types.is_null(value)):
            raise CorpusError(f"{name}: column {self.text_column!r} must hold text or bytes, but is {kind}")
        taken = [column for column in schema.names if column in self._reserved and column != self.text_column]
        if taken:
            raise CorpusError(f"{name}: column {taken[0]!r} has the name of a column of the scores; rename it")


class _Opened:
    """A parquet file for a `with` block; what is wrong with it is a CorpusError."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path

    def __enter__(self) -> pq.ParquetFile:
        try:
            self._file = self._fs.open(self._path, "rb")
            return pq.ParquetFile(self._file)
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"{self._path}: {error}") from error

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _is_hidden(name: str) -> bool:
    """Whether it or a folder of it begins with "_" or ".": that is none of the data, as everybody has it."""
    return any(part.startswith(("_", ".")) for part in name.split("/") if part != ".")


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary))


def _shards(name: str, path: str, metadata: pq.FileMetaData, text_column: str, shard_bytes: int) -> Iterator[Shard]:
    """Each row group by itself, in equal parts by the average size of its texts."""
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(index) for index in range(group.num_columns))
        text_bytes = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == text_column)
        rows = max(1, group.num_rows * shard_bytes // max(text_bytes, 1))
        for start in range(0, group.num_rows, rows):
            output = f"{name.removesuffix(SUFFIX)}-{first + start:010d}{SUFFIX}"
            yield Shard(path, number, start, min(rows, group.num_rows - start), output)
        first += group.num_rows
