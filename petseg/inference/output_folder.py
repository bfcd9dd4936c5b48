"""Manage the output folder of a prediction job: check its plan, find committed shards, start and finish the job.

`storage/sharded_output.py` describes the protocol. The plan follows from the manifest and the settings alone, so a
second start makes the same plan. `shard.py` processes a single shard. This module knows nothing of Ray or of pixels.
"""

import errno
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from petseg import files, storage
from petseg.data.notes import add_notes, count_notes
from petseg.errors import STORAGE_ERRORS, InputError
from petseg.files import MASK_FOLDER, OVERLAY_FOLDER
from petseg.inference.plan import Outputs, Plan, Summary, Target, fingerprint
from petseg.storage import checks, sharded_output

SHARD_FILE = re.compile(r"part-\d{5,}-of-\d{5,}\.parquet")
"""Pattern of the file names of shards."""

_IO_THREADS = 16
_CHUNK = 10_000
_NAMES_SHOWN = 5


def require_plan(target: Target) -> None:
    """Raise `OSError` if another job has taken over the output folder while this one was running."""
    location = storage.join(target.output, files.PLAN)
    try:
        there = json.loads(storage.read(location))
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, f"no {files.PLAN} there any more, or not on every machine") from error
    except ValueError:
        there = None
    if fingerprint(there) != target.fingerprint:
        raise OSError(errno.EEXIST, "another job has taken it over")


def find_done(plan: Plan, *, overwrite: bool = False) -> dict[int, Summary]:
    """Return the summaries of the shards of this plan that are already committed, by shard. Changes no file.

    Raises `InputError` if the folder is not writable. Raises it if the folder holds the output of another plan, unless
    `overwrite` is set. Raises it in any case if the folder holds output that its plan does not account for.
    """
    output = plan.target.output
    checks.require_writable(output, "--output")
    names = storage.list_names(output)
    if files.PLAN not in names:
        folders = (MASK_FOLDER, OVERLAY_FOLDER)
        ours = [name for name in names if name in (*folders, files.SUCCESS) or name.endswith(".parquet")]
        if ours:
            raise InputError(f"--output {output}: {ours[0]} already exists, but no {files.PLAN}; choose another folder")
        return {}
    before = _read_plan(output)
    for folder in plan.target.outputs.files().keys() - _outputs_of(before).files().keys():
        if folder in names:
            raise InputError(
                f"--output {output}: its {folder}/ is not of the job that was begun there; choose another folder"
            )
    if overwrite and before != plan.description:
        return {}
    _require_same_plan(plan, before)
    return _find_committed(plan)


def _require_same_plan(plan: Plan, before: dict[str, Any]) -> None:
    """Raise `InputError` if `before`, the plan the output was started with, differs from `plan`."""
    differing = sorted(key for key in before.keys() | plan.description if before.get(key) != plan.description.get(key))
    if differing:
        changes = [f"{key} (was {before.get(key)}, now {plan.description.get(key)})" for key in differing]
        if "manifest_sha256" in differing:
            changes += _changed_names(plan)
        raise InputError(
            f"--output {plan.target.output}: started with other settings: {', '.join(changes)}; choose another folder, "
            "or pass --overwrite to replace what is in this one"
        )


def _find_committed(plan: Plan) -> dict[int, Summary]:
    """Return the summaries of the committed shards, by shard.

    A shard that is truncated or of another plan is left out, and is written again.
    """
    target, names, committed = plan.target, set(storage.list_names(plan.target.output)), {}
    shards = [shard for shard in range(target.num_shards) if target.name(shard) in names]
    for shard, footer in zip(shards, sharded_output.read_footers(map(target.location, shards)), strict=True):
        if isinstance(footer, Exception):
            # For a broken footer, Arrow raises ArrowInvalid, or OSError without an errno.
            if isinstance(footer, OSError) and footer.errno not in (None, errno.ENOENT):
                raise footer
            continue
        summary = target.summary(shard, footer)
        rows = min(plan.shard_size, plan.manifest.num_rows - shard * plan.shard_size)
        if summary is not None and footer.num_rows == rows:
            committed[shard] = Summary(rows, *summary)
    return committed


def is_finished(plan: Plan, done: dict[int, Summary]) -> bool:
    """Return True if nothing is left to do. `done` is the result of `find_done`."""
    return len(done) == plan.target.num_shards and files.SUCCESS in storage.list_names(plan.target.output)


def begin(plan: Plan, *, overwrite: bool = False) -> None:
    """Create the output folder and write the plan.

    If the folder holds the same plan, the leftovers of a killed start are removed. If it holds another plan and
    `overwrite` is set, the output of that plan is deleted first.

    Raises `InputError` if another job has started there since `find_done` ran, and `OSError` if the folder cannot be
    written.
    """
    output = plan.target.output
    location = storage.join(output, files.PLAN)
    before = _read_plan(output) if files.PLAN in storage.list_names(output) else None
    if before is not None and not overwrite:
        _require_same_plan(plan, before)
    storage.remove_leftovers(output)
    if before is not None and before != plan.description:
        _clear(output, before)
    content = (json.dumps(plan.description, indent=2) + "\n").encode()
    if before is None:
        storage.create(location, content, "--output")
    manifest = sharded_output.to_arrow(plan.manifest.select(["id", "image"]))
    storage.write(storage.join(output, files.PREDICTION_MANIFEST), manifest)
    if before is not None and before != plan.description:
        storage.remove_file(storage.join(output, files.OLD_PREDICTION_MANIFEST))
        storage.write(location, content)


def summarise(rows: pa.Table) -> Summary:
    """Return the summary of a shard's rows."""
    errors = [
        f"{row_id}: {error}"
        for row_id, error in zip(rows["id"].to_pylist(), rows["error"].to_pylist(), strict=True)
        if error is not None
    ]
    notes = count_notes(rows["id"].to_pylist(), rows["notes"].to_pylist())
    return Summary(rows.num_rows, len(errors), errors[:_NAMES_SHOWN], notes)


def finish(plan: Plan, done: dict[int, Summary], skipped: Mapping[str, int] | None = None) -> Summary:
    """Remove leftovers, write `_SUCCESS.json` and return the summary over all shards. Every shard must be committed.

    `skipped` are the numbers of files in the folder of the photos that are no images, by reason.

    Raises `OSError` if the file cannot be written or another job has written to the folder.
    """
    assert len(done) == plan.target.num_shards
    require_plan(plan.target)
    if _find_committed(plan) != done:
        raise OSError(errno.EEXIST, "another job has been writing there")
    summary = total(done)
    assert summary.rows == plan.manifest.num_rows
    storage.remove_leftovers(plan.target.output)
    content = {
        "images": summary.rows,
        "failed": summary.failed,
        "skipped": dict(skipped or {}),
        "notes": summary.notes,
        "shards": len(done),
        "plan": plan.description,
    }
    storage.write(storage.join(plan.target.output, files.SUCCESS), (json.dumps(content, indent=2) + "\n").encode())
    return summary


def total(done: dict[int, Summary]) -> Summary:
    """Return the sum over shards, with the errors of the first shards."""
    in_order = [done[shard] for shard in sorted(done)]
    errors = [error for summary in in_order for error in summary.first_errors]
    rows, failed = sum(s.rows for s in in_order), sum(s.failed for s in in_order)
    return Summary(rows, failed, errors[:_NAMES_SHOWN], add_notes(summary.notes for summary in in_order))


def _read_plan(output: str) -> dict[str, Any]:
    location = storage.join(output, files.PLAN)
    before = storage.read_json(location)
    if not isinstance(before, dict):
        raise InputError(f"{location}: an object with one key per setting is expected; was it edited?")
    if not before.keys() >= {"manifest_sha256", "shard_size"}:
        raise InputError(f"{location}: not the plan of a prediction; choose another folder")
    return before


def _outputs_of(before: dict[str, Any]) -> Outputs:
    """Return the outputs that a job with the plan `before` writes."""
    return Outputs(png=bool(before.get("png")), overlay=bool(before.get("overlay")))


def _changed_names(plan: Plan) -> list[str]:
    """Describe the photos added and removed since the output was started; empty if its manifest is unreadable."""
    try:
        before = set(_read_manifest(plan.target.output)["image"].to_pylist())
    except (*STORAGE_ERRORS, pa.ArrowException):
        return []
    now = set(plan.manifest["image"].to_pylist())
    changes = []
    for what, names in (("new", sorted(now - before)), ("gone", sorted(before - now))):
        if names:
            shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
            changes.append(f"{len(names)} {what}: {shown}")
    return changes


def _read_manifest(output: str) -> pa.Table:
    """Return the list of photos in an output, also in one that an earlier version wrote."""
    try:
        return sharded_output.parse_arrow(storage.read(storage.join(output, files.PREDICTION_MANIFEST)))
    except FileNotFoundError:
        return sharded_output.parse_parquet(storage.read(storage.join(output, files.OLD_PREDICTION_MANIFEST)))


def _clear(output: str, before: dict[str, Any]) -> None:
    """Delete the files written by a job with the plan `before`, except the plan itself.

    The plan is replaced last. If this process is killed, the next start can still identify the remaining files.
    """
    names = storage.list_names(output)
    for name in (files.SUCCESS, files.REPORT):
        storage.remove_file(storage.join(output, name))
    for name in names:
        if SHARD_FILE.fullmatch(name):
            storage.remove_file(storage.join(output, name))
    folders = {folder: ending for folder, ending in _outputs_of(before).files().items() if folder in names}
    if not folders:
        return
    try:
        ids = _read_manifest(output)["id"].to_pylist()
    except (OSError, pa.ArrowException) as error:
        location = storage.join(output, files.PREDICTION_MANIFEST)
        raise InputError(f"{location}: cannot be read, so what to overwrite is not known; delete {output}") from error
    for folder, ending in folders.items():
        with ThreadPoolExecutor(_IO_THREADS) as pool:
            for start in range(0, len(ids), _CHUNK):
                chunk = ids[start : start + _CHUNK]
                list(pool.map(storage.remove_file, (storage.join(output, folder, row_id + ending) for row_id in chunk)))
        storage.remove_empty_folders(storage.join(output, folder))
