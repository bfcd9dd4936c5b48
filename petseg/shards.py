"""A prediction job as shards: the plan, reading one shard, writing one, and what is left to do. No Ray, no network.

A shard is the unit of work and its Parquet file is its commit: it appears whole, after the PNG files of its rows. The
plan follows from the manifest and the settings alone, so a second start makes the same one, keeps the shards that are
there and does the rest.
"""

import errno
import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import images, storage
from petseg.config import InputError
from petseg.images import Photo

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mask_png", pa.binary()),
        ("class_pixels", pa.list_(pa.int64())),
        ("confidence", pa.float32()),
        ("error", pa.string()),
    ]
)
"""One row per photo, also for one that failed: then `error` says why, and all but `id` and `image` is null."""

PLAN_FILE = "_plan.json"
SUCCESS_FILE = "_SUCCESS.json"
MASK_FOLDER = "masks"

_IO_THREADS = 16
_ERRORS_KEPT = 5
_MASKS_WAITING = 8  # masks at the original size that may wait for an encoder
_PLAN_KEY, _SUMMARY_KEY = b"petseg.plan", b"petseg.summary"


@dataclass(frozen=True)
class Target:
    """Where the shards of a job go; small, so that every task can be told."""

    output: str
    num_shards: int
    fingerprint: str
    """SHA-256 of the plan; every shard carries it, so that another job's is never taken for this one's."""
    png: bool

    def location(self, shard: int) -> str:
        """Where the Parquet file of a shard is."""
        return storage.join(self.output, f"part-{shard:05d}-of-{self.num_shards:05d}.parquet")


@dataclass(frozen=True)
class Plan:
    """Which photo is in which shard of which output."""

    manifest: pa.Table
    shard_size: int
    description: dict[str, Any]
    """All that the output's bytes follow from, as JSON values: what `_plan.json` holds."""
    target: Target

    def rows(self, shard: int) -> pa.Table:
        """The part of the manifest that is in a shard, with the column `shard`."""
        rows = self.manifest.slice(shard * self.shard_size, self.shard_size)
        return rows.append_column("shard", pa.array([shard] * rows.num_rows, pa.int64()))


@dataclass(frozen=True)
class Summary:
    """How a shard went."""

    rows: int
    failed: int
    first_errors: list[str]
    """"id: reason" of some of those that failed."""


def make_plan(manifest: pa.Table, output: str, *, shard_size: int, png: bool, settings: dict[str, Any]) -> Plan:
    """The plan of a job; `settings` is whatever, beside the photos' names, decides what is written."""
    digest = hashlib.sha256()
    for name in ("id", "image"):
        for value in manifest[name].to_pylist():
            digest.update(value.encode() + b"\n")
    description = {
        "images": manifest.num_rows,
        "manifest_sha256": digest.hexdigest(),
        "shard_size": shard_size,
        "png": png,
        **settings,
    }
    fingerprint = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    return Plan(
        manifest,
        shard_size,
        description,
        Target(output, -(-manifest.num_rows // shard_size), fingerprint, png),
    )


def find_done(plan: Plan) -> dict[int, Summary]:
    """The shards of this plan that the output holds already, complete; nothing is changed.

    Raises `InputError` where the folder cannot be written, or holds the output of a job with another plan.
    """
    output = plan.target.output
    storage.require_writable(output, "--output")
    names = storage.list_names(output)
    location = storage.join(output, PLAN_FILE)
    if PLAN_FILE not in names:
        ours = [name for name in names if name in (MASK_FOLDER, SUCCESS_FILE) or name.endswith(".parquet")]
        if ours:
            raise InputError(
                f"--output {output}: {ours[0]} is there already, but no {PLAN_FILE}; choose another folder"
            )
        return {}
    before = storage.read_json(location)
    if not isinstance(before, dict):
        raise InputError(f"{location}: an object with one key per setting is expected; was it edited?")
    differing = sorted(key for key in before.keys() | plan.description if before.get(key) != plan.description.get(key))
    if differing:
        changes = ", ".join(f"{key} (was {before.get(key)}, now {plan.description.get(key)})" for key in differing)
        raise InputError(f"--output {output}: begun with other settings: {changes}; choose another folder")
    with ThreadPoolExecutor(_IO_THREADS) as pool:
        found = pool.map(lambda shard: _committed(plan, shard), range(plan.target.num_shards))
        return {shard: summary for shard, summary in enumerate(found) if summary is not None}


def is_finished(plan: Plan, done: dict[int, Summary]) -> bool:
    """Whether nothing is left to do, given what `find_done` found."""
    return len(done) == plan.target.num_shards and SUCCESS_FILE in storage.list_names(plan.target.output)


def begin(plan: Plan) -> None:
    """Make the output's folder and write the plan, or clear up after a start of the same plan that was killed.

    Raises `InputError` where the folder cannot be written.
    """
    output = plan.target.output
    if PLAN_FILE in storage.list_names(output):
        storage.remove_leftovers(output)
        return
    content = json.dumps(plan.description, indent=2) + "\n"
    storage.create(storage.join(output, PLAN_FILE), content.encode(), "--output")


def read_shard(rows: pa.Table, size_hw: tuple[int, int], max_pixels: int) -> pa.Table:
    """Read and decode the photos of a shard: its rows with `height`, `width`, `error` and `pixels` (raw RGB bytes).

    A photo that cannot be read or decoded has its reason in `error`, and null elsewhere.
    """
    columns: dict[str, list[Any]] = {"height": [], "width": [], "error": [], "pixels": []}
    for location in rows["image"].to_pylist():
        photo, error = None, None
        try:
            photo = images.decode_photo(storage.read(location), size_hw, max_pixels)
        except images.DecodeError as refused:
            error = str(refused)
        except OSError as refused:
            error = f"cannot be read: {refused.strerror or refused}"
        columns["height"].append(photo and photo.height)
        columns["width"].append(photo and photo.width)
        columns["error"].append(error)
        columns["pixels"].append(photo and photo.pixels.tobytes())
    types = (pa.int32(), pa.int32(), pa.string(), pa.binary(size_hw[0] * size_hw[1] * 3))
    for (name, values), kind in zip(columns.items(), types, strict=True):
        rows = rows.append_column(name, pa.array(values, kind))
    return rows


def predict_shard(
    rows: pa.Table,
    size_hw: tuple[int, int],
    predict: Callable[[list[Photo]], Iterable[Any]],
    palette: tuple[tuple[int, int, int], ...],
    pool: ThreadPoolExecutor,
) -> pa.Table:
    """The rows of `read_shard` as rows of `SCHEMA`, with the column `shard`; `predict` is a `predict.Predictor`."""
    pixels = images.from_column(rows["pixels"], (*size_hw, 3))
    good = [row for row, error in enumerate(rows["error"].to_pylist()) if error is None]
    heights, widths = rows["height"].to_pylist(), rows["width"].to_pylist()
    found: dict[str, list[Any]] = {name: [None] * rows.num_rows for name in ("mask_png", "class_pixels", "confidence")}
    encoding: deque[tuple[int, Future[bytes]]] = deque()

    def take(at_most: int) -> None:
        while len(encoding) > at_most:
            row, png = encoding.popleft()
            found["mask_png"][row] = png.result()

    masks = predict([Photo(pixels[row], heights[row], widths[row]) for row in good])
    for row, mask in zip(good, masks, strict=True):
        found["class_pixels"][row] = mask.class_pixels
        found["confidence"][row] = mask.confidence
        encoding.append((row, pool.submit(images.encode_mask, mask.class_ids, palette)))
        take(_MASKS_WAITING)
    take(0)
    columns = {name: found[name] if name in found else rows[name] for name in SCHEMA.names}
    return pa.table(columns, schema=SCHEMA).append_column("shard", rows["shard"])


def write_shard(rows: pa.Table, target: Target) -> Summary:
    """Write the PNG files of a shard, then, as its commit, its Parquet file. Doing it twice gives the same bytes."""
    shard = rows["shard"][0].as_py()
    rows = rows.drop_columns("shard")
    if target.png:
        with ThreadPoolExecutor(_IO_THREADS) as pool:
            pngs = zip(rows["id"].to_pylist(), rows["mask_png"].to_pylist(), strict=True)
            list(pool.map(lambda pair: _write_png(target, *pair), pngs))
    summary = _summarise(rows)
    footer = {_PLAN_KEY: target.fingerprint, _SUMMARY_KEY: json.dumps([summary.failed, summary.first_errors])}
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(footer), buffer)
    storage.write(target.location(shard), buffer.getvalue())
    return summary


def finish(plan: Plan, done: dict[int, Summary]) -> Summary:
    """Clear up, and write `_SUCCESS.json`, once every shard is there; the summary of all of them."""
    assert len(done) == plan.target.num_shards
    summary = total(done)
    assert summary.rows == plan.manifest.num_rows
    storage.remove_leftovers(plan.target.output)
    content = {
        "images": summary.rows,
        "failed": summary.failed,
        "shards": len(done),
        "plan": plan.description,
    }
    storage.write(storage.join(plan.target.output, SUCCESS_FILE), (json.dumps(content, indent=2) + "\n").encode())
    return summary


def total(done: dict[int, Summary]) -> Summary:
    """The sum over shards, with the errors of the first of them."""
    in_order = [done[shard] for shard in sorted(done)]
    errors = [error for summary in in_order for error in summary.first_errors]
    rows, failed = sum(s.rows for s in in_order), sum(s.failed for s in in_order)
    return Summary(rows, failed, errors[:_ERRORS_KEPT])


def _summarise(rows: pa.Table) -> Summary:
    errors = [
        f"{row_id}: {error}"
        for row_id, error in zip(rows["id"].to_pylist(), rows["error"].to_pylist(), strict=True)
        if error is not None
    ]
    return Summary(rows.num_rows, len(errors), errors[:_ERRORS_KEPT])


def _committed(plan: Plan, shard: int) -> Summary | None:
    """The summary in the footer of a shard, if the file is there, whole, and of this plan."""
    location = plan.target.location(shard)
    try:
        with storage.open_file(location) as file:
            metadata = pq.read_metadata(file)
    except pa.ArrowInvalid:
        return None  # cut short or overwritten by something else: it is written anew
    except OSError as error:
        if error.errno not in (None, errno.ENOENT):
            raise
        return None  # not there; or a broken footer, for which Arrow has this type, too, but no number
    footer = metadata.metadata or {}
    expected = min(plan.shard_size, plan.manifest.num_rows - shard * plan.shard_size)
    if metadata.num_rows != expected or footer.get(_PLAN_KEY) != plan.target.fingerprint.encode():
        return None
    return Summary(expected, *json.loads(footer[_SUMMARY_KEY]))


def _write_png(target: Target, row_id: str, content: bytes | None) -> None:
    if content is not None:
        storage.write(storage.join(target.output, MASK_FOLDER, row_id + ".png"), content, scratch=target.output)
