"""Get a dataset, look at one, or decode one for good.

python jobs/prepare.py oxford-pets --output pets                            the published set, laid out for training
python jobs/prepare.py check --images photos --masks masks --output checked    what is in it, before any training
python jobs/prepare.py shards --images photos --masks masks --output set       Parquet files of decoded pairs
ray job submit --working-dir . -- python jobs/prepare.py shards …           on a cluster
"""

import dataclasses
import io
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import cli, files, storage
from petseg.cli.invocation import command_line
from petseg.config.prepare import CheckConfig, OxfordConfig, ShardsConfig
from petseg.data import check, decode, labels, manifest, oxford_pets, prepared_writer, splits
from petseg.data.labels import LabelMap
from petseg.data.prepared import Prepared, Target
from petseg.data.prepared_writer import Summary
from petseg.errors import InputError, JobError, UnavailableError
from petseg.progress import Progress
from petseg.reports import check as check_report
from petseg.reports.check import Checked
from petseg.storage import checks
from petseg.training import recipes

CHECK_FILE = "check.parquet"


def main() -> None:
    """Parse `sys.argv` and do the subcommand."""
    commands = {"oxford-pets": OxfordConfig, "check": CheckConfig, "shards": ShardsConfig}
    config = cli.parse_subcommand("prepare", commands, about=__doc__)
    if isinstance(config, OxfordConfig):
        _get_oxford_pets(config)
    elif isinstance(config, CheckConfig):
        _check(config)
    else:
        _make_shards(config)


def _get_oxford_pets(config: OxfordConfig) -> None:
    output, cache = storage.absolute(config.output), storage.absolute(config.cache)
    if not storage.is_local(cache):
        raise InputError(f"--cache {cache}: give a local folder")
    checks.require_writable(output, "--output")
    checks.require_writable(cache, "--cache")
    found = oxford_pets.finished(output)
    how = "finished before; nothing to do"
    if found is None:
        oxford_pets.fetch(config.url, Path(cache))
        with checks.writing(output):
            found = oxford_pets.unpack(Path(cache), output)
        how = f"the archives are kept in {cache}"
    print(f"{how}; {found.pairs} pairs, {len(found.left_out)} left out, {len(found.odd)} odd: {output}")
    for what, names in (("left out", found.left_out), ("odd, but kept", found.odd)):
        for name, reason in names.items():
            print(f"  {what}: {name}: {reason}")
    folders = [
        "--images",
        storage.join(output, oxford_pets.IMAGE_FOLDER),
        "--masks",
        storage.join(output, oxford_pets.MASK_FOLDER),
    ]
    print(f"next: {command_line('train', folders)}")


def _check(config: CheckConfig) -> None:
    config = cli.located(config)
    checks.refuse_overlap(config.output, {"--images": config.images, "--masks": config.masks})
    checks.require_writable(config.output, "--output")
    if files.REPORT in storage.list_names(config.output) and not config.overwrite:
        raise InputError(
            f"--output {config.output}: it has a {files.REPORT} already; choose another, or pass --overwrite"
        )
    classes = labels.class_names(config.num_classes, config.classes)
    label_map = LabelMap.parse(config.label_map, len(classes), classes, config.ignore_label)
    pairs, photos_alone, masks_alone = manifest.match(config.images, config.masks)
    if not pairs.num_rows:
        raise InputError(
            f"--images {config.images}, --masks {config.masks}: no mask is called as a photo is (photos such as "
            f"{photos_alone['id'][0]}, masks such as {masks_alone['id'][0]}); give both one name, but for the ending"
        )
    found = _look(config, classes, label_map, pairs, photos_alone, masks_alone)
    said = check_report.findings(found)
    command = command_line("train", check_report.train_flags(found))
    alone = [{"id": row["id"], "image": row["image"], "error": "no mask"} for row in photos_alone.to_pylist()]
    alone += [{"id": row["id"], "mask": row["image"], "error": "no photo"} for row in masks_alone.to_pylist()]
    content = io.BytesIO()
    pq.write_table(check.table(list(found.rows), pairs, found.sides, found.like(), alone), content)
    with checks.writing(config.output):  # before the page, for which photos are read again
        storage.write(storage.join(config.output, CHECK_FILE), content.getvalue())
        storage.write(storage.join(config.output, cli.CONFIG_FILE), cli.as_file(config))
    page = check_report.page(found, said, dataclasses.asdict(config), command)
    with checks.writing(config.output):
        storage.write(storage.join(config.output, files.REPORT), page)
    print(f"{pairs.num_rows} pairs: {storage.join(config.output, files.REPORT)}")
    for finding in said:
        print(f"  {finding}")
    if any(finding.refused for finding in said):
        raise JobError(f"training would refuse this set; once that is mended: {command}")
    print(f"next: {command}")


def _look(
    config: CheckConfig,
    classes: tuple[str, ...],
    label_map: LabelMap,
    pairs: pa.Table,
    photos_alone: pa.Table,
    masks_alone: pa.Table,
) -> Checked:
    """All that is to be known of the pairs."""
    val_fraction = config.val_fraction or (None if config.val_count else recipes.VAL_FRACTION)
    held_out = {"val_count": config.val_count, "val_fraction": val_fraction}
    sides, notes = splits.divide(pairs, config.split_file, seed=config.seed, **held_out)
    for note in notes:
        print(note)
    rows = []
    progress = Progress(pairs.num_rows, 0, 0, sys.stdout, unit=("pairs", 1))  # what is wrong with them follows
    try:
        for row in check.look(pairs, label_map, decode.MAX_TRAINING_PIXELS):
            rows.append(row)
            progress.add(1)
    finally:
        progress.close()
    same, alike = check.twice(rows)
    return Checked(
        config=config,
        pairs=pairs,
        rows=rows,
        photos_alone=photos_alone["id"].to_pylist(),
        masks_alone=masks_alone["id"].to_pylist(),
        sides={row_id: side for side, found in sides.items() for row_id in found["id"].to_pylist()},
        labels=check.labels_of(rows),
        label_map=label_map,
        classes=classes,
        same=same,
        alike=alike,
    )


def _make_shards(config: ShardsConfig) -> None:
    config = cli.located(config)
    checks.refuse_overlap(config.output, {"--images": config.images, "--masks": config.masks})
    classes = labels.class_names(config.num_classes, config.classes)
    label_map = LabelMap.parse(config.label_map, len(classes), classes, config.ignore_label)
    checks.require_writable(config.output, "--output")
    pairs = manifest.discover(config.images, config.masks)
    target = prepared_writer.make_target(pairs, config, label_map)
    finished = prepared_writer.find_finished(target)
    if finished is not None:
        _report(finished, "finished before; nothing to do")
        return
    done = prepared_writer.find_done(target)
    how = "nothing was left to do"
    if len(done) < target.num_shards:
        how = _do_shards(target, pairs, done, label_map, config.skip_bad)
    failures = [reason for shard in sorted(done) for reason in done[shard].left_out.values()]
    if failures and not config.skip_bad:
        raise manifest.refuse_bad(failures, "Mend or remove them, or leave them out with --skip-bad")
    with checks.writing(config.output):
        storage.write(storage.join(config.output, cli.CONFIG_FILE), cli.as_file(config))
        _report(prepared_writer.finish(target, pairs, done), how)


def _do_shards(target: Target, pairs: pa.Table, done: dict[int, Summary], label_map: LabelMap, skip_bad: bool) -> str:
    """Do the shards that are not in `done`, and put them there; returns how fast that was."""
    from petseg.cluster import connect

    connect.connect()
    settings = target.settings
    connect.require_shared({"--images": settings.images, "--masks": settings.masks, "--output": target.output})
    connect.require({"CPU": 1}, 1, "shards")
    before = sum(_pairs_in(summary) for summary in done.values())
    failed = sum(len(summary.left_out) for summary in done.values())
    storage.remove_leftovers(target.output)
    started = time.perf_counter()
    progress = Progress(pairs.num_rows, before, failed, sys.stdout)
    try:
        for shard, summary in _written(target, pairs, done, label_map, skip_bad):
            done[shard] = summary
            progress.add(_pairs_in(summary), len(summary.left_out))
    finally:
        progress.close()
    seconds = time.perf_counter() - started
    return f"{pairs.num_rows - before} pairs in {seconds:.1f} s, {(pairs.num_rows - before) / seconds:.1f} pairs/s"


def _pairs_in(summary: Summary) -> int:
    return summary.rows + len(summary.left_out)


def _written(
    target: Target, pairs: pa.Table, done: dict[int, Summary], label_map: LabelMap, skip_bad: bool
) -> Iterator[tuple[int, Summary]]:
    """Each shard that is not in `done`, once it is written (one with bad pairs only with `skip_bad`), in any order.

    Raises `JobError` where one cannot be written, or storage does not answer.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = None
    context.op_resource_reservation_enabled = False  # for those who take the blocks; with two cores only one worked
    work = partial(
        _write,
        pairs=ray.put(pairs),  # travels once to each machine, not once a shard
        target=target,
        label_map=label_map,
        skip_bad=skip_bad,
    )
    left = [pa.table({"shard": [shard]}) for shard in range(target.num_shards) if shard not in done]
    written = ray.data.from_arrow(left).map_batches(work, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)
    for row in written.iter_rows():
        if row["refusal"] is not None:
            raise JobError(row["refusal"])
        yield row["shard"], Summary(row["rows"], list(row["class_pixels"]), dict(row["left_out"]))


def _write(numbers: pa.Table, pairs: Any, target: Target, label_map: LabelMap, skip_bad: bool) -> pa.Table:
    """One shard: its summary as a row, and why it could not be written, as Ray would show a traceback of many lines."""
    import ray

    from petseg.pipelines.decode import decode_rows

    shard = numbers["shard"][0].as_py()
    rows = prepared_writer.rows_of(ray.get(pairs), shard, target.settings.shard_size)
    summary, refusal = Summary(0, [], {}), None
    try:
        decoded = decode_rows(rows, target.settings.image_size, label_map, target.settings.resize)
    except UnavailableError as error:
        refusal = f"{error}; what is finished is kept: give the same command again"
    else:
        summary = prepared_writer.summarise(decoded, target)
        if skip_bad or not summary.left_out:
            try:
                prepared_writer.write_shard(decoded, summary, shard, target)
            except OSError as error:
                refusal = checks.cannot_write(target.output, error)
    values = {"shard": shard, "refusal": refusal, **vars(summary), "left_out": list(summary.left_out.items())}
    return pa.table({name: [value] for name, value in values.items()}, schema=_WRITTEN)


_WRITTEN = pa.schema(
    [
        ("shard", pa.int64()),
        ("refusal", pa.string()),
        ("rows", pa.int64()),
        ("class_pixels", pa.list_(pa.int64())),
        ("left_out", pa.list_(pa.list_(pa.string()))),
    ]
)


def _report(found: Prepared, how: str) -> None:
    settings = found.settings
    height, width = settings.image_size
    print(
        f"{how}; {settings.rows} pairs at {height} × {width} in {len(settings.files)} files, {len(settings.left_out)} "
        f"left out: {found.location}"
    )
    for reason in settings.left_out:
        print(f"  left out: {reason}")


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main, "what is finished is kept: the same command goes on")
