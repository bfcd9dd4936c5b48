"""Write a prepared set: assign pairs to shards, find finished shards, write a shard, finish. No Ray, no decoding.

A shard is the unit of work, and its Parquet file is its commit. The file appears whole, and its footer names the set
and the shard. So a second run keeps the shards that exist and writes the others, with the same bytes. `prepared`
defines and reads sets.
"""

import dataclasses
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from petseg import storage
from petseg.config.base import DatasetConfig, to_json
from petseg.config.prepare import ShardsConfig
from petseg.data import decode, labels, prepared
from petseg.data.labels import LabelMap
from petseg.data.manifest import SCHEMA, digest
from petseg.data.prepared import DATASET_FILE, MANIFEST_FILE, SET_KEY, Prepared, Target
from petseg.errors import InputError
from petseg.storage import checks

_IO_THREADS = 16
_SUMMARY_KEY = b"petseg.summary"


@dataclass(frozen=True)
class Summary:
    """The result of preparing one shard: rows written, pixels per class, and the pairs left out."""

    rows: int
    class_pixels: list[int]
    left_out: dict[str, str]
    """Maps the id of each unusable pair to the file that is bad and the reason."""


def make_target(manifest: pa.Table, config: ShardsConfig, label_map: LabelMap) -> Target:
    """Return the target of these pairs: output, settings, number of shards. The locations in `config` are absolute."""
    classes = labels.class_names(config.num_classes, config.classes)
    settings = DatasetConfig(
        format=prepared.FORMAT,
        images=config.images,
        masks=config.masks,
        source_sha256=digest(manifest, ("id", "image", "mask")),
        image_size=config.image_size,
        resize=config.resize,
        label_map=str(label_map),
        class_names=classes,
        palette=labels.palette(len(classes)),
        shard_size=config.pairs_per_shard,
    )
    return Target(config.output, -(-manifest.num_rows // settings.shard_size), settings)


def rows_of(manifest: pa.Table, shard: int, shard_size: int) -> pa.Table:
    """Return the rows of the manifest that belong to a shard."""
    return manifest.slice(shard * shard_size, shard_size)


def find_finished(target: Target) -> Prepared | None:
    """Return the set with these pairs and settings if the output folder holds it already, else None.

    Raises `InputError`, naming what differs, if the folder holds another set.
    """
    if DATASET_FILE not in storage.list_names(target.output):
        return None
    found = prepared.open_set(target.output)
    before, now = (dataclasses.asdict(settings) for settings in (prepared.unfinished(found.settings), target.settings))
    differing = [f"{key} (was {before[key]}, now {now[key]})" for key in now if before[key] != now[key]]
    if differing:
        raise InputError(
            f"--output {target.output}: it holds a set with other settings: {', '.join(differing)}; choose another "
            "folder, or delete this one"
        )
    return found


def find_done(target: Target) -> dict[int, Summary]:
    """Return the shards that an earlier run wrote. Raises `InputError` if the folder holds shards of another set."""
    checks.require_writable(target.output, "--output")
    numbers = {target.name(shard): shard for shard in range(target.num_shards)}
    names = [name for name in storage.list_names(target.output) if name.endswith(".parquet") and name != MANIFEST_FILE]
    done = {}
    with ThreadPoolExecutor(_IO_THREADS) as pool:
        footers = pool.map(lambda name: prepared.footer(storage.join(target.output, name)), names)
        for name, (metadata, _) in zip(names, footers, strict=True):
            found = (metadata and metadata.metadata) or {}
            if name not in numbers or found.get(SET_KEY) != target.mark(numbers[name]):
                raise InputError(
                    f"--output {target.output}: its {name} is of other pairs or settings; choose another folder, or "
                    "delete this one"
                )
            assert metadata is not None
            done[numbers[name]] = Summary(metadata.num_rows, *json.loads(found[_SUMMARY_KEY]))
    return done


def summarise(decoded: pa.Table, target: Target) -> Summary:
    """Summarise the decoded pairs of a shard, which have the columns of `prepared.schema`, and `error`."""
    bad = decoded.filter(~pc.field("error").is_null())
    masks = decoded["mask"].drop_null()
    class_ids = decode.from_column(masks, (masks.type.byte_width,))
    class_pixels = np.bincount(class_ids.ravel(), minlength=256)[: len(target.settings.class_names)]
    left_out = dict(zip(bad["id"].to_pylist(), bad["error"].to_pylist(), strict=True))
    return Summary(decoded.num_rows - bad.num_rows, class_pixels.tolist(), left_out)


def write_shard(decoded: pa.Table, summary: Summary, shard: int, target: Target) -> None:
    """Write a shard, without the pairs that have an `error`. Raises `OSError` if it cannot be written."""
    rows = decoded.filter(pc.field("error").is_null()).select(prepared.schema(target.settings.image_size).names)
    metadata = {SET_KEY: target.mark(shard), _SUMMARY_KEY: json.dumps([summary.class_pixels, summary.left_out])}
    # There is one row group per pair, because a training batch takes its pairs from the whole set. Statistics of pixels
    # would be large and useless.
    content = _to_parquet(rows.replace_schema_metadata(metadata), row_group_size=1, write_statistics=False)
    storage.write(target.location(shard), content, target.output)


def finish(target: Target, manifest: pa.Table, done: dict[int, Summary]) -> Prepared:
    """Write the manifest of the usable pairs, and then `dataset.json`. Every shard must have been written.

    Raises `InputError` if no pixel has a class to learn from, and `OSError` if the folder cannot be written.
    """
    assert len(done) == target.num_shards
    summaries = [done[shard] for shard in range(target.num_shards)]
    class_pixels = np.sum([summary.class_pixels for summary in summaries], 0)
    if not class_pixels.any():
        raise InputError(
            f"--masks {target.settings.masks}: every pixel is ignored, or no pair can be used; see --label-map (now "
            f"{target.settings.label_map})"
        )
    left_out = {row_id: reason for summary in summaries for row_id, reason in summary.left_out.items()}
    kept = manifest.filter(~pc.field("id").isin(pa.array(list(left_out), pa.string())))
    content = _to_parquet(kept.cast(SCHEMA))
    settings = dataclasses.replace(
        target.settings,
        rows=kept.num_rows,
        class_pixels=tuple(class_pixels.tolist()),
        left_out=tuple(left_out.values()),
        files=tuple(target.name(shard) for shard in range(target.num_shards)),
        file_rows=tuple(summary.rows for summary in summaries),
        manifest_sha256=hashlib.sha256(content).hexdigest(),
    )
    assert sum(settings.file_rows) == settings.rows
    storage.remove_leftovers(target.output)
    storage.write(storage.join(target.output, MANIFEST_FILE), content)
    storage.write(storage.join(target.output, DATASET_FILE), to_json(settings).encode())
    return Prepared(target.output, settings, kept)


def _to_parquet(rows: pa.Table, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(
        rows,
        buffer,
        compression="zstd",
        use_dictionary=False,
        write_page_checksum=True,
        **options,  # pyright: ignore[reportArgumentType]
    )
    return buffer.getvalue()
