"""Protocol of a resumable job that writes a folder of Parquet shards. Predictions and prepared sets follow it.

A shard is the unit of work, and its file is its commit. The file appears whole, after the other files of its rows. Its
footer holds a mark, which names the job (and so keeps the shards of two jobs apart), and a summary, which is all that
the job needs to know of a finished shard. Which rows a shard has follows from the manifest and the settings alone. A
second start therefore keeps the finished shards and writes the others, to the same bytes. A last file says that the
output is complete.
"""

import io
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import storage
from petseg.lookahead import map_ahead

_SUMMARY_KEY = b"petseg.summary"
_IO_THREADS = 16
_ARROW_ROWS = 2**16  # rows of a record batch


@dataclass(frozen=True)
class ShardedOutput:
    """Destination of a job's shards. It is small, so it can be sent to every task."""

    output: str
    """Absolute location of the folder."""
    num_shards: int

    mark_key: ClassVar[bytes]
    """Key of the mark in a footer."""

    def mark(self, shard: int) -> bytes:
        """Return the mark in the footer of a shard of this job."""
        raise NotImplementedError

    def name(self, shard: int) -> str:
        """Return the file name of a shard."""
        return f"part-{shard:05d}-of-{self.num_shards:05d}.parquet"

    def location(self, shard: int) -> str:
        """Return the location of a shard's file."""
        return storage.join(self.output, self.name(shard))

    def write_shard(
        self, shard: int, rows: pa.Table, summary: list[Any], scratch: str | None = None, **options: Any
    ) -> None:
        """Write a shard: its commit. `summary` holds JSON values, and `options` are those of `pq.write_table`.

        Raises `OSError` or `UnavailableError` if it cannot be written.
        """
        metadata = {self.mark_key: self.mark(shard), _SUMMARY_KEY: json.dumps(summary)}
        storage.write(self.location(shard), to_parquet(rows.replace_schema_metadata(metadata), **options), scratch)

    def summary(self, shard: int, footer: pq.FileMetaData) -> list[Any] | None:
        """Return the summary in a shard's footer; None if the file is of another job, or another shard."""
        metadata = footer.metadata or {}
        return json.loads(metadata[_SUMMARY_KEY]) if metadata.get(self.mark_key) == self.mark(shard) else None


def rows_of(manifest: pa.Table, shard: int, shard_size: int) -> pa.Table:
    """Return the rows of a manifest that belong to a shard."""
    return manifest.slice(shard * shard_size, shard_size)


def count_shards(manifest: pa.Table, shard_size: int) -> int:
    """Return the number of shards of a manifest; the last one may have fewer rows."""
    return -(-manifest.num_rows // shard_size)


def read_footers(locations: Iterable[str]) -> Iterator[pq.FileMetaData | Exception]:
    """Yield the footer of each Parquet file, in order, or the `OSError` or `ArrowException` of reading it.

    Raises `UnavailableError` if storage does not answer.
    """

    def read(location: str) -> pq.FileMetaData | Exception:
        try:
            with storage.open_file(location) as file:
                return pq.read_metadata(file)
        except (OSError, pa.ArrowException) as error:
            return error

    with ThreadPoolExecutor(_IO_THREADS) as pool:
        yield from map_ahead(pool, read, locations, _IO_THREADS)


def to_arrow(rows: pa.Table) -> bytes:
    """Return the content of an Arrow IPC file with these rows, compressed with zstd."""
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(rows, max_chunksize=_ARROW_ROWS)
    return buffer.getvalue()


def parse_arrow(content: bytes) -> pa.Table:
    """Return the table in the content of an Arrow IPC file. Raises `ArrowException` or `OSError` if it is broken."""
    return pa.ipc.open_file(pa.BufferReader(content)).read_all()


def to_parquet(rows: pa.Table, **options: Any) -> bytes:
    """Return the content of a Parquet file with these rows. `options` are those of `pq.write_table`."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, **options)
    return buffer.getvalue()


def parse_parquet(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """Return the table, or only `columns` of it, in the content of a Parquet file.

    It is read in the calling thread alone: a process that exits while an Arrow thread releases a Python object aborts.
    """
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(columns, use_threads=False)
