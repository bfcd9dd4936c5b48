"""Read what an output already holds, and continue it: with the same photos, or also with those that are new since."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from petseg import files, storage
from petseg.data.listing import UNKNOWN_VERSION
from petseg.errors import STORAGE_ERRORS, InputError
from petseg.inference.plan import Plan, continue_plan, generations_of, settings_of
from petseg.storage import sharded_output

NAMES_SHOWN = 5
"""Maximum number of names in a message."""

_CHANGED = -1
"""Version, in `_manifest.arrow`, of a photo whose file has changed and that is not yet predicted again."""

_GENERATIONS_KEY = b"petseg.generations"


@dataclass(frozen=True)
class Start:
    """Photos of an output after a start of a job, and those that it predicts again."""

    plan: Plan
    """Plan of all photos, those of earlier starts included."""
    changed: Mapping[int, int]
    """Rows of the manifest whose file has changed since it was predicted, with its version now."""
    num_new: int = 0
    """Number of photos that are added to the output."""
    num_gone: int = 0
    """Number of photos of the output that are not found any more. Their rows stay."""


def find_start(plan: Plan, *, append: bool = False) -> Start:
    """Return how an output is continued. `plan` is that of the photos found now. Changes no file.

    With `append`, photos that the output does not have become another generation, and those whose file has changed are
    predicted again. Without it, the photos must be those of the output. If the output cannot be continued, or is new,
    `plan` itself is returned.

    Raises `InputError` if the plan there cannot be read; with `append` also if all photos are in another place now.
    """
    output = plan.target.output
    before = read_plan(output) if files.PLAN in storage.list_names(output) else None
    stored = None if before is None else _read_photos(output, before)
    if before is None or stored is None or settings_of(before) != settings_of(plan.description):
        return Start(plan, {})
    row_of = pc.index_in(plan.manifest["id"], value_set=stored["id"])  # pyright: ignore[reportAttributeAccessIssue]
    known, new = plan.manifest.filter(row_of.is_valid()), plan.manifest.filter(row_of.is_null())
    rows = row_of.drop_null().to_numpy()
    has_moved = pc.not_equal(known["image"], stored["image"].take(rows)).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
    if not append and (new.num_rows or has_moved.any() or known.num_rows < stored.num_rows):
        return Start(plan, {})
    if has_moved.any() and has_moved.all():
        raise InputError(
            f"--append: all photos of {output} are in another place now, such as {known['image'][0]} (was "
            f"{stored['image'][int(rows[0])]}); give the folder that they were predicted from, or another --output"
        )
    now, then = known["version"].to_numpy(), stored["version"].to_numpy()[rows]
    is_changed = then == _CHANGED  # found by a start that was killed
    if append:
        is_changed |= has_moved | ((now != then) & (now != UNKNOWN_VERSION) & (then != UNKNOWN_VERSION))
    stored = _mark_changed(stored, rows[is_changed], known["image"].filter(pa.array(is_changed)))
    manifest = pa.concat_tables([stored, new.select(stored.column_names)]) if new.num_rows else stored
    continued = continue_plan(plan, manifest, generations_of(before), new.num_rows)
    changed = dict(zip(rows[is_changed].tolist(), now[is_changed].tolist(), strict=True))
    return Start(continued, changed, new.num_rows, stored.num_rows - known.num_rows)


def require_continuable(plan: Plan, before: Mapping[str, Any], names: list[str]) -> None:
    """Raise `InputError` if `before`, the plan of an output, has other settings than `plan`, or other photos.

    `names` are those of the files in the output. Without a shard, it may have other photos.
    """
    now, then = settings_of(plan.description), settings_of(before)
    differing = sorted(key for key in then.keys() | now if then.get(key) != now.get(key))
    if differing:
        changes = [f"{key} (was {then.get(key)}, now {now.get(key)})" for key in differing]
        raise InputError(
            f"--output {plan.target.output}: started with other settings: {', '.join(changes)}; choose another folder, "
            "or pass --overwrite to replace what is in this one"
        )
    if not is_continued(plan, before) and any(files.PREDICTION_SHARD.fullmatch(name) for name in names):
        raise InputError(
            f"--output {plan.target.output}: it has other photos than --images: {_changed_names(plan)}; pass --append "
            "to predict the new ones, choose another folder, or pass --overwrite to replace what is in this one"
        )


def is_continued(plan: Plan, before: Mapping[str, Any]) -> bool:
    """Return True if an output with the plan `before` is continued by `plan`: it has the same photos, or more."""
    there, now = generations_of(before), generations_of(plan.description)
    return settings_of(before) == settings_of(plan.description) and now[: len(there)] == there


def read_plan(output: str) -> dict[str, Any]:
    """Return the content of `_plan.json`. Raises `InputError` if it cannot be read, or is not that of a prediction."""
    location = storage.join(output, files.PLAN)
    before = storage.read_json(location)
    if not isinstance(before, dict):
        raise InputError(f"{location}: an object with one key per setting is expected; was it edited?")
    if not before.keys() >= {"manifest_sha256", "shard_size"}:
        raise InputError(f"{location}: not the plan of a prediction; choose another folder")
    return before


def read_manifest(output: str) -> pa.Table:
    """Return the list of photos in an output, also in one that an earlier version wrote."""
    try:
        return sharded_output.parse_arrow(storage.read(storage.join(output, files.PREDICTION_MANIFEST)))
    except FileNotFoundError:
        return sharded_output.parse_parquet(storage.read(storage.join(output, files.OLD_PREDICTION_MANIFEST)))


def write_manifest(plan: Plan, changed: Mapping[int, int] | None = None) -> None:
    """Write the list of photos. The versions of `changed` rows take the place of the mark that they have changed."""
    rows = plan.manifest.select(["id", "image", "version"])
    if changed:
        versions = rows["version"].to_numpy().copy()
        versions[list(changed)] = list(changed.values())
        rows = rows.set_column(2, "version", pa.array(versions))
    rows = rows.replace_schema_metadata({_GENERATIONS_KEY: json.dumps(generations_of(plan.description))})
    location = storage.join(plan.target.output, files.PREDICTION_MANIFEST)
    # One chunk, so that the bytes do not depend on how the rows came together.
    storage.write(location, sharded_output.to_arrow(rows.combine_chunks()))


def _read_photos(output: str, before: dict[str, Any]) -> pa.Table | None:
    """Return the photos of the plan `before`; None if the list in the output is broken, or that of another plan.

    A start that was killed has perhaps replaced the list, and not yet the plan.
    """
    try:
        photos = read_manifest(output)
        of_list = json.loads((photos.schema.metadata or {}).get(_GENERATIONS_KEY, b"[]"))
        generations = generations_of(before)
        num_rows = sum(generation["images"] for generation in generations)
    except (*STORAGE_ERRORS, pa.ArrowException, ValueError, TypeError, KeyError):
        return None
    if of_list[: len(generations)] != generations or photos.num_rows < num_rows:
        return None
    return photos.slice(0, num_rows).replace_schema_metadata(None)


def _mark_changed(photos: pa.Table, rows: np.ndarray, images: pa.ChunkedArray) -> pa.Table:
    """Return the photos with `_CHANGED` as the version of these rows, and with `images` as their locations."""
    if not len(rows):
        return photos
    is_changed = np.zeros(photos.num_rows, np.bool_)
    is_changed[rows] = True
    versions = np.where(is_changed, _CHANGED, photos["version"].to_numpy())
    in_order = images.take(pa.array(np.argsort(rows))).combine_chunks()
    before = photos["image"].combine_chunks()
    replaced = pc.replace_with_mask(before, pa.array(is_changed), in_order)  # pyright: ignore[reportAttributeAccessIssue]
    return photos.set_column(1, "image", replaced).set_column(2, "version", pa.array(versions))


def _changed_names(plan: Plan) -> str:
    """Describe the photos added and removed since the output was started."""
    try:
        before = set(read_manifest(plan.target.output)["image"].to_pylist())
    except (*STORAGE_ERRORS, pa.ArrowException):
        return f"its {files.PREDICTION_MANIFEST} cannot be read"
    now = set(plan.manifest["image"].to_pylist())
    changes = []
    for what, names in (("new", sorted(now - before)), ("gone", sorted(before - now))):
        if names:
            shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
            changes.append(f"{len(names)} {what}: {shown}")
    return ", ".join(changes) or "in another order"
