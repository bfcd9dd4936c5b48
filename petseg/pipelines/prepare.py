"""Decode and write the missing shards of a prepared set with Ray Data: one task per shard."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from petseg.data import orientation, prepared_writer
from petseg.data.labels import LabelMap
from petseg.data.prepared import Target
from petseg.data.prepared_writer import Summary
from petseg.errors import JobError, UnavailableError
from petseg.pipelines.datasets import WHOLE_BLOCKS, data_context
from petseg.pipelines.pair_rows import decode_rows
from petseg.pipelines.shards import iter_shards, report_shard
from petseg.storage import checks, sharded_output


def prepare_shards(
    target: Target, pairs: pa.Table, done: dict[int, Summary], label_map: LabelMap, skip_bad: bool
) -> Iterator[tuple[int, Summary]]:
    """Decode the shards that are not in `done` and yield (shard number, summary) of each, in any order.

    A shard with bad pairs is yielded, too, but written only with `skip_bad`. Shards with unclear masks come last, once
    the other shards show how those were drawn. `done` must hold every yielded shard.

    Raises `JobError` if a shard cannot be written or storage does not answer, and `InputError` if --masks-upright is
    needed.
    """
    # The manifest travels once to each machine, not once per shard.
    work = partial(_write, pairs=ray.put(pairs), target=target, label_map=label_map, skip_bad=skip_bad)
    missing = [shard for shard in range(target.num_shards) if shard not in done]
    undecided: dict[int, Summary] = {}
    for shard, summary in _run(missing, partial(work, upright=orientation.given(target.settings.masks_upright))):
        if summary.undecided:
            undecided[shard] = summary
        else:
            yield shard, summary
    if undecided:
        drawn = sum((Counter(summary.drawn) for summary in (*done.values(), *undecided.values())), Counter())
        upright = orientation.decide(drawn, undecided[min(undecided)].undecided)
        yield from _run(sorted(undecided), partial(work, upright=upright))


def _run(shards: list[int], work: Callable[[pa.Table], pa.Table]) -> Iterator[tuple[int, Summary]]:
    # Ray Data would reserve cores for consumers of the blocks, so that only one of two cores decoded.
    with data_context(op_resource_reservation_enabled=False):
        rows = [pa.table({"shard": [shard]}) for shard in shards]
        written = ray.data.from_arrow(rows).map_batches(work, **WHOLE_BLOCKS)
    return iter_shards(written, Summary)


def _write(
    row: pa.Table, pairs: Any, target: Target, label_map: LabelMap, skip_bad: bool, upright: bool | None
) -> pa.Table:
    shard, settings = row["shard"][0].as_py(), target.settings

    def write() -> Summary:
        rows = sharded_output.rows_of(ray.get(pairs), shard, settings.shard_size)
        try:
            decoded = decode_rows(rows, settings.image_size, label_map, settings.resize, upright)
        except UnavailableError as error:
            raise JobError(f"{error}; {checks.RERUN}") from error
        summary = prepared_writer.summarise(decoded, target)
        if not summary.undecided and (skip_bad or not summary.skipped):
            with checks.translate_write_errors(target.output):
                prepared_writer.write_shard(decoded, summary, shard, target)
        return summary

    return report_shard(shard, write)
