"""Download a dataset, check one, or decode one to Parquet files.

python jobs/prepare.py oxford-pets --output pets                            the Oxford-IIIT Pet Dataset, for training
python jobs/prepare.py check --images photos --masks masks --output checked    a report of its problems, before training
python jobs/prepare.py shards --images photos --masks masks --output set       Parquet files of decoded pairs
ray job submit --working-dir . -- python jobs/prepare.py shards …           on a cluster
"""

import dataclasses
import io
import sys
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.base import MAX_PIXELS
from petseg.config.prepare import CheckConfig, OxfordConfig, ShardsConfig
from petseg.data import check, manifest, oxford_pets, prepared_writer, splits
from petseg.data.classes import Classes, resolve_classes, write_classes
from petseg.data.labels import LabelMap
from petseg.data.mask_values import sum_values
from petseg.data.notes import add_notes, note_lines
from petseg.data.prepared import Prepared, Target
from petseg.data.prepared_writer import Summary
from petseg.errors import InputError, JobError
from petseg.progress import Progress
from petseg.reports.check import page
from petseg.reports.findings import Checked, find_problems, train_flags
from petseg.storage import checks
from petseg.storage.hold import hold
from petseg.storage.locations import absolute_locations
from petseg.training import recipes


def main() -> None:
    """Parse `sys.argv` and run the subcommand."""
    commands = {"oxford-pets": OxfordConfig, "check": CheckConfig, "shards": ShardsConfig}
    config = cli.parse_subcommand("prepare", commands, about=__doc__)
    if isinstance(config, OxfordConfig):
        _download_oxford_pets(config)
    elif isinstance(config, CheckConfig):
        _check(config)
    else:
        _make_shards(config)


@cli.on_interrupt(cli.CONTINUES)
def _download_oxford_pets(config: OxfordConfig) -> None:
    output, cache = storage.absolute(config.output), storage.absolute(config.cache)
    if not storage.is_local(cache):
        raise InputError(f"--cache {cache}: must be a local folder")
    checks.require_writable(output, "--output")
    checks.require_writable(cache, "--cache")
    unpacked = oxford_pets.finished(output)
    status = "already finished; nothing to do"
    if unpacked is None:
        oxford_pets.fetch(config.url, Path(cache))
        with checks.translate_write_errors(output):
            unpacked = oxford_pets.unpack(Path(cache), output)
        status = f"the archives are kept in {cache}"
    else:
        with checks.translate_write_errors(output):  # earlier versions did not write classes.json
            write_classes(storage.join(output, oxford_pets.MASK_FOLDER), oxford_pets.CLASSES)
    counts = f"{unpacked.pairs} pairs, {len(unpacked.skipped)} skipped, {len(unpacked.warnings)} warnings"
    print(f"{status}; {counts}: {output}")
    for kind, reasons in (("skipped", unpacked.skipped), ("warning", unpacked.warnings)):
        for name, reason in reasons.items():
            print(f"  {kind}: {name}: {reason}")
    folders = [
        "--images",
        storage.join(output, oxford_pets.IMAGE_FOLDER),
        "--masks",
        storage.join(output, oxford_pets.MASK_FOLDER),
    ]
    print(f"next: {command_line('train', folders)}")


def _check(config: CheckConfig) -> None:
    config = absolute_locations(config)
    checks.require_no_overlap(config.output, {"--images": config.images, "--masks": config.masks})
    checks.require_writable(config.output, "--output")
    if files.REPORT in storage.list_names(config.output) and not config.overwrite:
        raise InputError(
            f"--output {config.output}: {files.REPORT} already exists; choose another folder, or pass --overwrite"
        )
    skipped: manifest.Skipped = {}
    suffixes = (config.image_suffix, config.mask_suffix)
    pairs, unpaired_photos, unpaired_masks = manifest.match(
        config.images, config.masks, suffixes=suffixes, skipped=skipped
    )
    if not pairs.num_rows:
        photo, mask = unpaired_photos["id"][0], unpaired_masks["id"][0]
        raise InputError(
            f"--images {config.images}, --masks {config.masks}: no photo and mask have the same name (photos such "
            f"as {photo}, masks such as {mask}); rename them to match "
            "(extensions may differ), or pass --image-suffix or --mask-suffix"
        )
    classes = resolve_classes(config, config.masks, pairs)
    checked = _scan(config, classes, pairs, unpaired_photos, unpaired_masks, skipped)
    findings = find_problems(checked)
    command = command_line("train", train_flags(checked))
    unpaired = [{"id": row["id"], "image": row["image"], "error": "no mask"} for row in unpaired_photos.to_pylist()]
    unpaired += [{"id": row["id"], "mask": row["image"], "error": "no photo"} for row in unpaired_masks.to_pylist()]
    content = io.BytesIO()
    pq.write_table(check.table(list(checked.rows), pairs, checked.splits, checked.duplicate_of(), unpaired), content)
    with checks.translate_write_errors(
        config.output
    ):  # before the page, because building it reads photos again and may fail
        storage.write(storage.join(config.output, files.CHECK), content.getvalue())
        storage.write(storage.join(config.output, files.CONFIG), cli.as_file(config))
    report = page(checked, findings, dataclasses.asdict(config), command)
    with checks.translate_write_errors(config.output):
        storage.write(storage.join(config.output, files.REPORT), report)
    print(f"{pairs.num_rows} pairs: {storage.join(config.output, files.REPORT)}")
    for finding in findings:
        print(f"  {finding}")
    if any(finding.blocks_training for finding in findings):
        raise JobError(f"training would reject this dataset; fix the problems above, then run: {command}")
    print(f"next: {command}")


def _scan(
    config: CheckConfig,
    classes: Classes,
    pairs: pa.Table,
    unpaired_photos: pa.Table,
    unpaired_masks: pa.Table,
    skipped: manifest.Skipped,
) -> Checked:
    """Read all pairs and return everything the report needs."""
    val_fraction = config.val_fraction or (None if config.val_count else recipes.VAL_FRACTION)
    parts, warnings = splits.divide(
        pairs, config.split_file, seed=config.seed, val_count=config.val_count, val_fraction=val_fraction
    )
    for warning in warnings:
        print(warning)
    rows = []
    progress = Progress(pairs.num_rows, 0, 0, sys.stdout, unit=("pairs", 1))  # no count of failures: findings follow
    try:
        for row in check.scan_pairs(pairs, classes.label_map, MAX_PIXELS):
            rows.append(row)
            progress.add(1)
    finally:
        progress.close()
    exact_duplicates, near_duplicates = check.find_duplicates(rows)
    return Checked(
        config=config,
        pairs=pairs,
        rows=rows,
        unpaired_photos=unpaired_photos["id"].to_pylist(),
        unpaired_masks=unpaired_masks["id"].to_pylist(),
        skipped=skipped,
        splits={row_id: split for split, part in parts.items() for row_id in part["id"].to_pylist()},
        labels=sum_values((row.values, row.colours) for row in rows if row.values is not None),
        classes=classes,
        exact_duplicates=exact_duplicates,
        near_duplicates=near_duplicates,
    )


@cli.on_interrupt(cli.CONTINUES)
def _make_shards(config: ShardsConfig) -> None:
    config = absolute_locations(config)
    checks.require_no_overlap(config.output, {"--images": config.images, "--masks": config.masks})
    checks.require_writable(config.output, "--output")
    pairs = manifest.discover(config.images, config.masks, suffixes=(config.image_suffix, config.mask_suffix))
    classes = resolve_classes(config, config.masks, pairs)
    target = prepared_writer.make_target(pairs, config, classes)
    with hold(config.output, "--output"):
        _prepare(config, pairs, target, classes)


def _prepare(config: ShardsConfig, pairs: pa.Table, target: Target, classes: Classes) -> None:
    """Prepare the missing shards, and finish the set."""
    finished = prepared_writer.find_finished(target)
    if finished is not None:
        _print_summary(finished, "already finished; nothing to do")
        return
    done = prepared_writer.find_done(target)
    status = "all shards were already written"
    if len(done) < target.num_shards:
        status = _run_shards(target, pairs, done, classes.label_map, config.skip_bad)
    for line in note_lines(add_notes(done[shard].notes for shard in sorted(done))):
        print(f"note: {line}")
    failures = [reason for shard in sorted(done) for reason in done[shard].skipped.values()]
    if failures and not config.skip_bad:
        raise manifest.unusable_pairs_error(failures, "fix or remove them, or skip them with --skip-bad")
    with checks.translate_write_errors(config.output):
        storage.write(storage.join(config.output, files.CONFIG), cli.as_file(config))
        _print_summary(prepared_writer.finish(target, pairs, done), status)


def _run_shards(target: Target, pairs: pa.Table, done: dict[int, Summary], label_map: LabelMap, skip_bad: bool) -> str:
    """Prepare the shards that are not in `done`, and add them to it. Return a line about the speed."""
    from petseg.cluster import connect, resources
    from petseg.pipelines.prepare import prepare_shards
    from petseg.pipelines.shards import run_shards

    connect.connect(debug=cli.is_debugging())
    settings = target.settings
    resources.require_shared({"--images": settings.images, "--masks": settings.masks, "--output": target.output})
    resources.require({"CPU": 1}, 1, "prepare shards")
    storage.remove_leftovers(target.output)
    shards = prepare_shards(target, pairs, done, label_map, skip_bad)
    return run_shards(shards, done, pairs.num_rows, _count, "pairs")


def _count(summary: Summary) -> tuple[int, int]:
    """Return (pairs processed, pairs skipped) of a shard."""
    return summary.rows + len(summary.skipped), len(summary.skipped)


def _print_summary(dataset: Prepared, status: str) -> None:
    settings = dataset.settings
    size, skipped = " × ".join(map(str, settings.image_size)), len(settings.left_out)
    counts = f"{settings.rows} pairs at {size} in {len(settings.files)} files, {skipped} skipped"
    print(f"{status}; {counts}: {dataset.location}")
    for reason in settings.left_out:
        print(f"  skipped: {reason}")


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
