"""Check a set before training, and write a report: `petseg prepare check`."""

import dataclasses
import io
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.base import MAX_PIXELS
from petseg.config.prepare import CheckConfig
from petseg.data import check, listing, manifest, splits
from petseg.data.classes import Classes, resolve_classes
from petseg.data.mask_values import sum_values
from petseg.errors import InputError, JobError
from petseg.progress import Progress
from petseg.reports.check import LABEL_ERRORS_SHOWN, page
from petseg.reports.checked import Checked
from petseg.reports.findings import find_problems, train_flags
from petseg.storage import checks
from petseg.storage.locations import absolute_locations
from petseg.training import recipes, run_folder

if TYPE_CHECKING:
    from petseg.evaluation.label_errors import Trained


def check_set(config: CheckConfig) -> None:
    """Read all pairs, write the report, and print the findings. Raises `JobError` if training would reject the set."""
    config = absolute_locations(config)
    checks.require_no_overlap(config.output, {"--images": config.images, "--masks": config.masks})
    checks.require_writable(config.output, "--output")
    if files.REPORT in storage.list_names(config.output) and not config.overwrite:
        raise InputError(
            f"--output {config.output}: {files.REPORT} already exists; choose another folder, or pass --overwrite"
        )
    skipped: listing.Skipped = {}
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
    networks = _find_networks(config, classes) if config.checkpoint else []
    checked = _scan(config, classes, pairs, unpaired_photos, unpaired_masks, skipped)
    if networks:
        checked = _check_labels(checked, networks)
    unpaired = [{"id": row["id"], "image": row["image"], "error": "no mask"} for row in unpaired_photos.to_pylist()]
    unpaired += [{"id": row["id"], "mask": row["image"], "error": "no photo"} for row in unpaired_masks.to_pylist()]
    _report(checked, unpaired)


def _report(checked: Checked, unpaired: list[dict[str, str]]) -> None:
    """Write the results, and print the findings. Raises `JobError` if training would reject the set."""
    config, pairs = checked.config, checked.pairs
    findings = find_problems(checked)
    command = command_line("train", train_flags(checked))
    content, rows = io.BytesIO(), list(checked.rows)
    found = (checked.splits, checked.duplicate_of(), checked.disagreements)
    pq.write_table(check.table(rows, pairs, *found, unpaired), content)
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


def _find_networks(config: CheckConfig, classes: Classes) -> "list[Trained]":
    """Return the checkpoints of --checkpoint. Raises `InputError` if one of them cannot judge the masks."""
    import torch

    from petseg.evaluation.label_errors import Trained
    from petseg.models import checkpoint

    if config.use_gpu and not torch.cuda.is_available():
        raise InputError("--use-gpu: torch finds no GPU on this machine; leave it out")
    networks = []
    for location in config.checkpoint:
        trained = checkpoint.find(location)
        _require_same_classes(location, trained.model.class_names, classes.names)
        checkpoint.load_model(trained)  # a broken file is reported before all pairs are read
        networks.append(Trained(trained, run_folder.trained_ids(location)))
    return networks


def _require_same_classes(location: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
    if theirs != ours:
        raise InputError(
            f"--checkpoint {location}: its classes are {', '.join(theirs)}, but those of the masks are "
            f"{', '.join(ours)}; give a run that was trained on this set, and --classes as in its training"
        )


def _check_labels(checked: Checked, networks: "list[Trained]") -> Checked:
    """Return the result with the disagreement of the networks, and their masks of the most likely label errors."""
    from petseg.evaluation.label_errors import LabelChecker

    config, pairs = checked.config, checked.pairs
    checker = LabelChecker(networks, checked.classes.label_map, checked.masks_upright(), use_gpu=config.use_gpu)
    progress = Progress(checker.num_scores(pairs), 0, 0, sys.stdout, unit=("masks", 1), name="labels ")
    try:
        disagreements = checker.disagreements(pairs, lambda: progress.add(1))
    finally:
        progress.close()
    shown = set(check.rank(disagreements)[:LABEL_ERRORS_SHOWN])
    of_shown = pairs.filter(pa.array([row_id in shown for row_id in pairs["id"].to_pylist()], pa.bool_()))
    predictions = checker.masks(of_shown, checked.classes.palette)
    return dataclasses.replace(checked, disagreements=disagreements, predictions=predictions)


def _scan(
    config: CheckConfig,
    classes: Classes,
    pairs: pa.Table,
    unpaired_photos: pa.Table,
    unpaired_masks: pa.Table,
    skipped: listing.Skipped,
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
