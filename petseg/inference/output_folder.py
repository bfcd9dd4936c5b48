"""Manage the output folder of a prediction job: check its plan, find committed shards, start and finish the job.

`storage/sharded_output.py` describes the protocol. The plan follows from the manifest and the settings alone, so a
second start makes the same plan. `shard.py` processes a single shard. This module knows nothing of Ray or of pixels.
"""

import errno
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from petseg import files, storage
from petseg.data.notes import add_notes, count_notes
from petseg.errors import InputError
from petseg.files import MASK_FOLDER, OVERLAY_FOLDER
from petseg.inference import existing
from petseg.inference.existing import Start
from petseg.inference.plan import Outputs, Plan, Summary, Target, fingerprint
from petseg.lookahead import map_ahead
from petseg.storage import checks, sharded_output

_IO_THREADS = 16
_CHUNK = 10_000


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

    Raises `InputError` if the folder is not writable. Raises it if the folder holds the output of a job that `plan`
    does not continue, unless `overwrite` is set. Raises it in any case if the folder holds output that its plan does
    not account for.
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
    before = existing.read_plan(output)
    for folder in plan.target.outputs.files().keys() - _outputs_of(before).files().keys():
        if folder in names:
            raise InputError(
                f"--output {output}: its {folder}/ is not of the job that was begun there; choose another folder"
            )
    if overwrite and not existing.is_continued(plan, before):
        return {}
    existing.require_continuable(plan, before, names)
    return _find_committed(plan)


def find_again(start: Start, done: dict[int, Summary], *, retry_errors: bool) -> dict[int, list[int]]:
    """Return the photos of committed shards to predict again: their indices in each shard.

    They are the changed photos and, with `retry_errors`, those that have failed.
    """
    plan = start.plan
    again = {shard: set(indices) for shard, indices in plan.places(start.changed).items() if shard in done}
    failed = [shard for shard in sorted(done) if done[shard].failed] if retry_errors else []
    with ThreadPoolExecutor(_IO_THREADS) as pool:
        errors = map_ahead(pool, partial(_read_errors, plan), failed, _IO_THREADS)
        for shard, indices in zip(failed, errors, strict=True):
            again.setdefault(shard, set()).update(indices)
    # A worker that outlives a killed driver may have replaced failed rows since `find_done` read the shard's footer.
    return {shard: sorted(indices) for shard, indices in again.items() if indices}


def _read_errors(plan: Plan, shard: int) -> list[int]:
    """Return the indices of a shard's photos that have failed."""
    with storage.open_file(plan.target.location(shard)) as file:
        errors = pq.read_table(file, columns=["error"])["error"]
    return np.flatnonzero(errors.is_valid().to_numpy()).tolist()


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
        if summary is not None and footer.num_rows == plan.num_rows(shard):
            committed[shard] = Summary(footer.num_rows, *summary)
    return committed


def is_finished(plan: Plan, done: dict[int, Summary]) -> bool:
    """Return True if nothing is left to do. `done` is the result of `find_done`."""
    return len(done) == plan.target.num_shards and files.SUCCESS in storage.list_names(plan.target.output)


def begin(plan: Plan, *, overwrite: bool = False) -> None:
    """Create the output folder, or prepare an existing one, and write the plan.

    If `plan` continues the output that the folder holds, the leftovers of a killed start are removed. If it does not
    and `overwrite` is set, that output is deleted first. From here to `finish`, there is no `_SUCCESS.json`.

    Raises `InputError` if another job has started there since `find_done` ran, and `OSError` if the folder cannot be
    written.
    """
    output = plan.target.output
    names = storage.list_names(output)
    before = existing.read_plan(output) if files.PLAN in names else None
    if before is not None and not overwrite:
        existing.require_continuable(plan, before, names)
    storage.remove_leftovers(output)
    location, content = storage.join(output, files.PLAN), _as_json(plan.description)
    if before is None:
        storage.create(location, content, "--output")
        existing.write_manifest(plan)
        return
    storage.remove_file(storage.join(output, files.SUCCESS))
    if not existing.is_continued(plan, before):
        _clear(output, before)
        storage.remove_file(storage.join(output, files.OLD_PREDICTION_MANIFEST))
    # The plan comes last: until then it does not count the photos that are added.
    existing.write_manifest(plan)
    if before != plan.description:
        storage.write(location, content)


def summarise(rows: pa.Table) -> Summary:
    """Return the summary of a shard's rows."""
    errors = [
        f"{row_id}: {error}"
        for row_id, error in zip(rows["id"].to_pylist(), rows["error"].to_pylist(), strict=True)
        if error is not None
    ]
    notes = count_notes(rows["id"].to_pylist(), rows["notes"].to_pylist())
    return Summary(rows.num_rows, len(errors), errors[: existing.NAMES_SHOWN], notes)


def finish(
    plan: Plan,
    done: dict[int, Summary],
    skipped: Mapping[str, int] | None = None,
    changed: Mapping[int, int] | None = None,
) -> Summary:
    """Remove leftovers, write `_SUCCESS.json` and return the summary over all shards. Every shard must be committed.

    `skipped` are the numbers of files in the folder of the photos that are no images, by reason. `changed` is that of
    the `Start`, whose photos are predicted again.

    Raises `OSError` if the file cannot be written or another job has written to the folder.
    """
    assert len(done) == plan.target.num_shards
    require_plan(plan.target)
    if _find_committed(plan) != done:
        raise OSError(errno.EEXIST, "another job has been writing there")
    summary = total(done)
    assert summary.rows == plan.manifest.num_rows
    storage.remove_leftovers(plan.target.output)
    if changed:
        existing.write_manifest(plan, changed)
    content = {
        "images": summary.rows,
        "failed": summary.failed,
        "skipped": dict(skipped or {}),
        "notes": summary.notes,
        "shards": len(done),
        "plan": plan.description,
    }
    storage.write(storage.join(plan.target.output, files.SUCCESS), _as_json(content))
    return summary


def total(done: dict[int, Summary]) -> Summary:
    """Return the sum over shards, with the errors of the first shards."""
    in_order = [done[shard] for shard in sorted(done)]
    errors = [error for summary in in_order for error in summary.first_errors]
    rows, failed = sum(s.rows for s in in_order), sum(s.failed for s in in_order)
    return Summary(rows, failed, errors[: existing.NAMES_SHOWN], add_notes(summary.notes for summary in in_order))


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _outputs_of(before: dict[str, Any]) -> Outputs:
    """Return the outputs that a job with the plan `before` writes."""
    return Outputs(png=bool(before.get("png")), overlay=bool(before.get("overlay")))


def _clear(output: str, before: dict[str, Any]) -> None:
    """Delete the files written by a job with the plan `before`, except the plan itself.

    The plan is replaced last. If this process is killed, the next start can still identify the remaining files.
    """
    names = storage.list_names(output)
    storage.remove_file(storage.join(output, files.REPORT))
    for name in names:
        if files.PREDICTION_SHARD.fullmatch(name):
            storage.remove_file(storage.join(output, name))
    folders = {folder: ending for folder, ending in _outputs_of(before).files().items() if folder in names}
    if not folders:
        return
    try:
        ids = existing.read_manifest(output)["id"].to_pylist()
    except (OSError, pa.ArrowException) as error:
        location = storage.join(output, files.PREDICTION_MANIFEST)
        raise InputError(f"{location}: cannot be read, so what to overwrite is not known; delete {output}") from error
    for folder, ending in folders.items():
        with ThreadPoolExecutor(_IO_THREADS) as pool:
            for start in range(0, len(ids), _CHUNK):
                chunk = ids[start : start + _CHUNK]
                list(pool.map(storage.remove_file, (storage.join(output, folder, row_id + ending) for row_id in chunk)))
        storage.remove_empty_folders(storage.join(output, folder))
