"""Check a set before training, and write a report: `petseg prepare check`."""

import dataclasses
import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.base import MAX_PIXELS
from petseg.config.prepare import CheckConfig
from petseg.data import check, manifest, splits
from petseg.data.classes import Classes, resolve_classes
from petseg.data.mask_values import sum_values
from petseg.errors import InputError, JobError
from petseg.progress import Progress
from petseg.reports.check import page
from petseg.reports.findings import Checked, find_problems, train_flags
from petseg.storage import checks
from petseg.storage.locations import absolute_locations
from petseg.training import recipes


def check_set(config: CheckConfig) -> None:
    """Read all pairs, write the report, and print the findings. Raises `JobError` if training would reject the set."""
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
