"""Write a prepared set: assign pairs to shards, find finished shards, write a shard, finish. No Ray, no decoding.

`storage/sharded_output.py` describes the protocol, and `prepared` defines and reads sets.
"""

import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from petseg import files, storage
from petseg.config.base import to_json
from petseg.config.dataset import DatasetConfig
from petseg.config.prepare import ShardsConfig
from petseg.data import decode, prepared
from petseg.data.classes import Classes
from petseg.data.manifest import SCHEMA, digest
from petseg.data.notes import Notes, count_notes
from petseg.data.prepared import Prepared, Target
from petseg.errors import InputError
from petseg.storage import checks, sharded_output

_PARQUET = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}


@dataclass(frozen=True)
class Summary:
    """The result of preparing one shard: rows written, pixels per class, and the pairs left out."""

    rows: int
    class_pixels: list[int]
    skipped: dict[str, str]
    """Maps the id of each unusable pair to the file that is bad and the reason."""
    drawn: dict[str, int]
    """Numbers of masks by how they were drawn; see `pairs.drawn`."""
    notes: Notes
    undecided: str = ""
    """Id of the first pair that was not decoded, because its mask is unclear; "" if there is none."""


def make_target(manifest: pa.Table, config: ShardsConfig, classes: Classes) -> Target:
    """Return the target of these pairs: output, settings, number of shards. The locations in `config` are absolute."""
    settings = DatasetConfig(
        format=prepared.FORMAT,
        images=config.images,
        masks=config.masks,
        source_sha256=digest(manifest, ("id", "image", "mask")),
        image_size=config.image_size,
        resize=config.resize,
        label_map=str(classes.label_map),
        masks_upright=config.masks_upright,
        class_names=classes.names,
        palette=classes.palette,
        shard_size=config.pairs_per_shard,
    )
    return Target(config.output, sharded_output.count_shards(manifest, settings.shard_size), settings)


def find_finished(target: Target) -> Prepared | None:
    """Return the set with these pairs and settings if the output folder holds it already, else None.

    Raises `InputError`, naming what differs, if the folder holds another set.
    """
    if files.DATASET not in storage.list_names(target.output):
        return None
    finished = prepared.open_set(target.output)
    before, now = map(dataclasses.asdict, (prepared.unfinished(finished.settings), target.settings))
    differing = [f"{key} (was {before[key]}, now {now[key]})" for key in now if before[key] != now[key]]
    if differing:
        raise InputError(
            f"--output {target.output}: it holds a set with other settings: {', '.join(differing)}; choose another "
            "folder, or delete this one"
        )
    return finished


def find_done(target: Target) -> dict[int, Summary]:
    """Return the shards that an earlier run wrote. Raises `InputError` if the folder holds shards of another set."""
    checks.require_writable(target.output, "--output")
    numbers = {target.name(shard): shard for shard in range(target.num_shards)}
    names = [name for name in storage.list_names(target.output) if name.endswith(".parquet")]
    done = {}
    footers = sharded_output.read_footers(storage.join(target.output, name) for name in names)
    for name, footer in zip(names, footers, strict=True):
        is_ours = name in numbers and not isinstance(footer, Exception)
        summary = target.summary(numbers[name], footer) if is_ours else None
        if isinstance(footer, Exception) or summary is None:
            raise InputError(
                f"--output {target.output}: its {name} is of other pairs or settings; choose another folder, or "
                "delete this one"
            )
        done[numbers[name]] = Summary(footer.num_rows, *summary)
    return done


def summarise(decoded: pa.Table, target: Target) -> Summary:
    """Summarise the decoded pairs of a shard, as `pipelines.pair_rows.decode_rows` returns them."""
    bad = decoded.filter(~pc.field("error").is_null())
    masks = decoded["mask"].drop_null()
    class_ids = decode.from_column(masks, (masks.type.byte_width,))
    class_pixels = np.bincount(class_ids.ravel(), minlength=256)[: len(target.settings.class_names)]
    skipped = dict(zip(bad["id"].to_pylist(), bad["error"].to_pylist(), strict=True))
    ids, drawn = decoded["id"].to_pylist(), Counter(decoded["drawn"].drop_null().to_pylist())
    undecided = decoded.filter(pc.field("error").is_null() & pc.field("mask").is_null())["id"].to_pylist()
    notes = count_notes(ids, decoded["notes"].to_pylist())
    rows = decoded.num_rows - bad.num_rows
    return Summary(rows, class_pixels.tolist(), skipped, dict(drawn), notes, next(iter(undecided), ""))


def write_shard(decoded: pa.Table, summary: Summary, shard: int, target: Target) -> None:
    """Write a shard, without the pairs that have an `error`. Raises as `ShardedOutput.write_shard` does."""
    rows = decoded.filter(pc.field("error").is_null()).select(prepared.schema(target.settings.image_size).names)
    # There is one row group per pair, because a training batch takes its pairs from the whole set. Statistics of pixels
    # would be large and useless.
    options = _PARQUET | {"row_group_size": 1, "write_statistics": False}
    target.write_shard(
        shard, rows, [summary.class_pixels, summary.skipped, summary.drawn, summary.notes], target.output, **options
    )


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
    skipped = {row_id: reason for summary in summaries for row_id, reason in summary.skipped.items()}
    kept = manifest.filter(~pc.field("id").isin(pa.array(list(skipped), pa.string())))
    content = sharded_output.to_arrow(kept.cast(SCHEMA))
    settings = dataclasses.replace(
        target.settings,
        rows=kept.num_rows,
        class_pixels=tuple(class_pixels.tolist()),
        left_out=tuple(skipped.values()),
        files=tuple(target.name(shard) for shard in range(target.num_shards)),
        file_rows=tuple(summary.rows for summary in summaries),
        manifest_sha256=hashlib.sha256(content).hexdigest(),
    )
    assert sum(settings.file_rows) == settings.rows
    storage.remove_leftovers(target.output)
    storage.write(storage.join(target.output, files.SET_MANIFEST), content)
    storage.write(storage.join(target.output, files.DATASET), to_json(settings).encode())
    return Prepared(target.output, settings, kept)
