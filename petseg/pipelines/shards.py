"""Run the missing shards of a resumable job on the cluster: the driver's loop, and what a task tells the driver.

A task returns a row per shard: its number and its summary, or the storage error for which it has none. An exception
would reach the driver as a traceback of many lines.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from petseg.cli.json_log import is_json, log_event
from petseg.errors import JobError
from petseg.progress import Progress
from petseg.status import JobStatus

if TYPE_CHECKING:  # a job on one machine needs no Ray
    import ray.data

Summary = TypeVar("Summary")

_RESULT = pa.schema([("shard", pa.int64()), ("summary", pa.string()), ("error", pa.string())])


def report_shard(shard: int, finish: Callable[[], Any]) -> pa.Table:
    """Return the row of a shard. `finish` writes it and returns its summary, a dataclass of JSON values.

    A `JobError` of `finish` becomes the row's error.
    """
    try:
        values = {"shard": [shard], "summary": [json.dumps(dataclasses.asdict(finish()))], "error": [None]}
    except JobError as error:
        values = {"shard": [shard], "summary": [None], "error": [str(error)]}
    return pa.table(values, schema=_RESULT)


def iter_shards(reported: "ray.data.Dataset", make: Callable[..., Summary]) -> Iterator[tuple[int, Summary]]:
    """Run the tasks, and yield (shard, summary) for each shard as soon as it is finished, in any order.

    `make` is the class of the summaries. Raises the `JobError` of the first row that has an error.
    """
    for row in reported.iter_rows():
        if row["error"] is not None:
            raise JobError(row["error"])
        yield row["shard"], make(**json.loads(row["summary"]))


def run_shards(
    shards: Iterator[tuple[int, Summary]],
    done: dict[int, Summary],
    count: Callable[[int, Summary], tuple[int, int]],
    total: int,
    before: tuple[int, int],
    unit: str,
    status: JobStatus,
    if_out_of_memory: str = "",
) -> str:
    """Put every shard of `shards` into `done` once it is finished, and show the progress of the job, also in `status`.

    `count` returns (rows processed, rows that failed) for a shard and its summary, before the shard is put into `done`.
    `before` has the sums over earlier starts, and `total` is the number of rows in the end. Returns a line about the
    speed, in which `unit` names the rows.

    Raises `JobError`, with the remedy `if_out_of_memory`, if Ray ends the same work again and again because the memory
    is full. The remedy is "" in a job without Ray.
    """
    started, finished = time.perf_counter(), 0
    status.count(total, *before, unit)
    progress = None if is_json() else Progress(total, *before, sys.stdout)
    try:
        with _memory_guard(if_out_of_memory) as note_progress:
            for shard, summary in shards:
                note_progress()
                rows, failed = count(shard, summary)
                done[shard] = summary
                finished += rows
                status.add(rows, failed)
                if progress is None:
                    numbers = {"rows": rows, "failed": failed, "seconds": round(time.perf_counter() - started, 3)}
                    log_event("shard", shard=shard, **numbers, rate=status.get().rate)
                else:
                    progress.add(rows, failed)
    finally:
        if progress is not None:
            progress.close()
    seconds = time.perf_counter() - started
    return f"{finished} {unit} in {seconds:.1f} s, {finished / seconds:.1f} {unit}/s"


def _memory_guard(remedy: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
    if not remedy:
        return contextlib.nullcontext(lambda: None)
    from petseg.cluster.memory import stop_if_out_of_memory

    return stop_if_out_of_memory(remedy)
