"""Read a prepared set: pairs decoded once and for all, in Parquet shards for training. No Ray, no decoding.

A set consists of `part-*.parquet` (one row group per pair, so that any few pairs can be read), `_manifest.arrow` (the
list of the pairs) and `dataset.json` (a `DatasetConfig`, which describes the set; it is written last).
`prepared_writer` writes sets.
"""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from petseg import files, storage
from petseg.cli.invocation import program
from petseg.config.base import from_json, to_json
from petseg.config.dataset import DatasetConfig
from petseg.errors import InputError
from petseg.storage import sharded_output
from petseg.storage.sharded_output import ShardedOutput

FORMAT = 3
"""Version of the format. Increase it when the same settings would give other bytes than before."""

REMEDY = "prepare the set again, in another folder"

_IO_THREADS = 16


def schema(image_size: tuple[int, int]) -> pa.Schema:
    """Return the schema of a shard, which has one row per pair.

    `image` is RGB, uint8 (H, W, 3), and `mask` class ids, uint8 (H, W), both as raw bytes at `image_size`. `height` and
    `width` are the upright original's, in pixels.
    """
    area = image_size[0] * image_size[1]
    fields = {
        "id": pa.string(),
        "image": pa.binary(area * 3),
        "mask": pa.binary(area),
        "height": pa.int32(),
        "width": pa.int32(),
    }
    return pa.schema(list(fields.items()))


@dataclass(frozen=True)
class Target(ShardedOutput):
    """Output folder of a set, and the settings of its shards."""

    settings: DatasetConfig
    """The set's settings, without the fields that are known only when all shards are written."""

    mark_key: ClassVar[bytes] = b"petseg.set"

    def mark(self, shard: int) -> bytes:
        """Return the mark in the footer of a shard. It differs from all other shards', of this set and of any other."""
        return f"{hashlib.sha256(to_json(self.settings).encode()).hexdigest()} {shard}".encode()


@dataclass(frozen=True)
class Prepared:
    """A finished set, as `open_set` returns it."""

    location: str
    settings: DatasetConfig
    manifest: pa.Table
    """Ids and original locations of the files, as `manifest.discover` gives them, without the pairs left out."""


def open_set(location: str) -> Prepared:
    """Open and check the set in a folder (an absolute location). The pixels are not read.

    Raises `InputError`, naming the file and the remedy, if the set is not finished, or if a file of it was edited, is
    missing or belongs to another set.
    """
    settings_file = storage.join(location, files.DATASET)
    if files.DATASET not in storage.list_names(location):
        raise InputError(
            f"{location}: no {files.DATASET} in it; `{program('prepare')} shards` writes it last, so run that "
            "command again, or give another folder"
        )
    described = storage.read_json(settings_file)
    if isinstance(described, dict) and described.get("format") != FORMAT:
        raise InputError(f"{settings_file}: made by another version of petseg; {REMEDY}")
    settings = from_json(DatasetConfig, storage.read_input(settings_file), settings_file)
    if sum(settings.file_rows) != settings.rows or len(settings.file_rows) != len(settings.files):
        raise InputError(f"{settings_file}: its numbers of rows do not agree; was it edited? {REMEDY}")
    _require_shards(Target(location, len(settings.files), unfinished(settings)), settings)
    manifest_file = storage.join(location, files.SET_MANIFEST)
    content = storage.read_input(manifest_file)
    if hashlib.sha256(content).hexdigest() != settings.manifest_sha256:
        raise InputError(f"{manifest_file}: not the one that {settings_file} was written for; {REMEDY}")
    manifest = sharded_output.parse_arrow(content)
    if manifest.num_rows != settings.rows:
        raise InputError(
            f"{settings_file}: it says {settings.rows} rows of {manifest.num_rows}; was it edited? {REMEDY}"
        )
    return Prepared(location, settings, manifest)


def locate(prepared: Prepared, rows: pa.Table) -> pa.Table:
    """Return where rows of the set's manifest are stored: columns `file` (location of the shard) and `row` in it."""
    indices = pc.index_in(rows["id"], value_set=prepared.manifest["id"])  # pyright: ignore[reportAttributeAccessIssue]
    assert not indices.null_count
    positions = indices.to_numpy()
    ends = np.cumsum(prepared.settings.file_rows)
    numbers = np.searchsorted(ends, positions, side="right")
    starts = ends - prepared.settings.file_rows
    files = pa.array([storage.join(prepared.location, name) for name in prepared.settings.files])
    return pa.table({"file": files.take(pa.array(numbers)), "row": positions - starts[numbers]})


def read_rows(located: pa.Table, image_size: tuple[int, int]) -> pa.Table:
    """Read the pairs that `locate` found, in that order: `image` and `mask` as in `schema`, and `error`.

    `error` is null in all rows. But if any file cannot be read, every row has the error, and no row has pixels. Raises
    `UnavailableError` if storage does not answer.
    """
    files, rows = located["file"].to_numpy(), located["row"].to_numpy()
    full_schema = schema(image_size)
    wanted = pa.schema([full_schema.field("image"), full_schema.field("mask")])
    positions = {file: np.flatnonzero(files == file) for file in dict.fromkeys(files)}

    def read(file: str) -> pa.Table | str:
        try:
            with storage.open_file(file) as content:
                # The page checksums find corruption that zstd does not notice.
                shard = pq.ParquetFile(content, pre_buffer=True, page_checksum_verification=True)
                return shard.read_row_groups(rows[positions[file]].tolist(), columns=wanted.names)
        except (OSError, pa.ArrowException) as error:
            return f"{file}: cannot be read: {storage.reason(error)}"

    with ThreadPoolExecutor(_IO_THREADS) as pool:
        results = list(pool.map(read, positions))
    parts = [wanted.empty_table(), *(part for part in results if isinstance(part, pa.Table))]
    refusals = [part for part in results if isinstance(part, str)]
    if refusals:
        error = pa.array(["; ".join(refusals)] * located.num_rows)
        nulls = {name: pa.nulls(located.num_rows, kind) for name, kind in zip(wanted.names, wanted.types, strict=True)}
        return pa.table({**nulls, "error": error})
    order = np.argsort(np.concatenate([np.arange(0), *positions.values()]))
    pairs = pa.concat_tables(parts).combine_chunks().take(pa.array(order))
    return pairs.append_column("error", pa.nulls(pairs.num_rows, pa.string()))


def unfinished(settings: DatasetConfig) -> DatasetConfig:
    """Return the settings as they were before anything was written: the fields with a default are reset."""
    without_default = {field.name for field in dataclasses.fields(settings) if field.default is dataclasses.MISSING}
    return DatasetConfig(**{name: getattr(settings, name) for name in without_default})


def _require_shards(target: Target, settings: DatasetConfig) -> None:
    """Raise `InputError` unless every shard of a finished set is there and belongs to it."""
    names = [target.name(shard) for shard in range(target.num_shards)]
    other = [name for name, expected in zip(settings.files, names, strict=True) if name != expected]
    if other:
        raise InputError(
            f"{storage.join(target.output, files.DATASET)}: it names a file {other[0]!r}; was it edited? {REMEDY}"
        )
    locations = [storage.join(target.output, name) for name in names]
    for shard, footer in enumerate(sharded_output.read_footers(locations)):
        error = _shard_error(target, shard, footer, settings.file_rows[shard])
        if error:
            raise InputError(f"{locations[shard]}: {error}; {REMEDY}")


def _shard_error(target: Target, shard: int, footer: pq.FileMetaData | Exception, rows: int) -> str:
    """Return what is wrong with a shard of a set; "" if it is as expected."""
    if isinstance(footer, Exception):
        return f"cannot be read: {storage.reason(footer)}"
    if target.summary(shard, footer) is None:
        return f"not written for this {files.DATASET}; was that edited, or the file replaced?"
    if footer.num_rows != rows or footer.num_row_groups != rows:
        return f"it has {footer.num_rows} rows, not {rows}"
    if not footer.schema.to_arrow_schema().equals(schema(target.settings.image_size)):
        return "its columns are not those of a prepared set"
    return ""
