"""Decode pairs once for many runs, to Parquet files: `petseg prepare shards`."""

import pyarrow as pa

from petseg import cli, files, storage
from petseg.cli.job_status import report_status
from petseg.cli.json_log import set_log_format
from petseg.config.prepare import ShardsConfig
from petseg.data import manifest, prepared_writer
from petseg.data.classes import Classes, resolve_classes
from petseg.data.labels import LabelMap
from petseg.data.notes import add_notes, note_lines
from petseg.data.photo_table import place_to_share
from petseg.data.prepared import Prepared, Target
from petseg.data.prepared_writer import Summary
from petseg.status import JobStatus
from petseg.storage import checks
from petseg.storage.hold import hold
from petseg.storage.locations import absolute_locations

_IF_OUT_OF_MEMORY = (
    "finished work is kept: use machines with more memory and run the same command again, or start over in another "
    "--output with a lower --shard-size"
)


@cli.on_interrupt(cli.CONTINUES)
def make_shards(config: ShardsConfig) -> None:
    """Prepare the shards that are missing, and print a summary."""
    set_log_format(config.log_format, "prepare shards")
    config = absolute_locations(config)
    checks.require_no_overlap(config.output, {"--images": config.images, "--masks": config.masks})
    checks.require_writable(config.output, "--output")
    pairs = manifest.discover(config.images, config.masks, suffixes=(config.image_suffix, config.mask_suffix))
    classes = resolve_classes(config, config.masks, pairs)
    target = prepared_writer.make_target(pairs, config, classes)
    with hold(config.output, "--output") as is_held, report_status("prepare shards", config.output, is_held) as status:
        _prepare(config, pairs, target, classes, status)


def _prepare(config: ShardsConfig, pairs: pa.Table, target: Target, classes: Classes, status: JobStatus) -> None:
    """Prepare the missing shards, and finish the set."""
    finished = prepared_writer.find_finished(target)
    if finished is not None:
        skipped = len(finished.settings.left_out)
        status.count(pairs.num_rows, pairs.num_rows, skipped, "pairs")
        _print_summary(finished, "already finished; nothing to do")
        return
    done = prepared_writer.find_done(target)
    speed = "all shards were already written"
    if len(done) < target.num_shards:
        speed = _run_shards(target, pairs, done, classes.label_map, config.skip_bad, status)
    else:
        status.count(pairs.num_rows, *_sum(done), "pairs")
    for line in note_lines(add_notes(done[shard].notes for shard in sorted(done))):
        print(f"note: {line}")
    failures = [reason for shard in sorted(done) for reason in done[shard].skipped.values()]
    if failures and not config.skip_bad:
        raise manifest.unusable_pairs_error(failures, "fix or remove them, or skip them with --skip-bad")
    status.enter("finishing")
    with checks.translate_write_errors(config.output):
        storage.write(storage.join(config.output, files.CONFIG), cli.as_file(config))
        _print_summary(prepared_writer.finish(target, pairs, done), speed)


def _run_shards(
    target: Target,
    pairs: pa.Table,
    done: dict[int, Summary],
    label_map: LabelMap,
    skip_bad: bool,
    status: JobStatus,
) -> str:
    """Prepare the shards that are not in `done`, and add them to it. Return a line about the speed."""
    from petseg.cluster import connect, metrics, resources
    from petseg.pipelines.prepare import prepare_shards
    from petseg.pipelines.shards import run_shards

    status.enter("starting Ray")
    connect.connect(debug=cli.is_debugging())
    metrics.export_status(status)
    settings = target.settings
    images, masks = place_to_share(settings.images, pairs["image"]), place_to_share(settings.masks, pairs["mask"])
    resources.require_shared({"--images": images, "--masks": masks, "--output": target.output})
    resources.require({"CPU": 1}, 1, "prepare shards")
    storage.remove_leftovers(target.output)
    shards = prepare_shards(target, pairs, done, label_map, skip_bad)
    status.enter("preparing")
    return run_shards(shards, done, _count, pairs.num_rows, _sum(done), "pairs", status, _IF_OUT_OF_MEMORY)


def _count(_: int, summary: Summary) -> tuple[int, int]:
    """Return (pairs processed, pairs skipped) of a shard."""
    return summary.rows + len(summary.skipped), len(summary.skipped)


def _sum(done: dict[int, Summary]) -> tuple[int, int]:
    """Return (pairs processed, pairs skipped) of all these shards."""
    counts = [_count(shard, summary) for shard, summary in done.items()]
    return sum(pairs for pairs, _ in counts), sum(skipped for _, skipped in counts)


def _print_summary(dataset: Prepared, speed: str) -> None:
    settings = dataset.settings
    size, skipped = " × ".join(map(str, settings.image_size)), len(settings.left_out)
    counts = f"{settings.rows} pairs at {size} in {len(settings.files)} files, {skipped} skipped"
    print(f"{speed}; {counts}: {dataset.location}")
    for reason in settings.left_out:
        print(f"  skipped: {reason}")
