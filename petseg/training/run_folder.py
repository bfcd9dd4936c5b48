"""Manage the folder of a training run: create it, resume it, read and write its metrics. No network and no Ray.

It holds `config.json` (the resolved `TrainConfig`), `manifest.parquet` (every pair and its split), `metrics.jsonl` (one
object per epoch) and `checkpoints/`.
"""

import dataclasses
import io
import json
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import files, storage
from petseg.config.base import from_json, to_json
from petseg.config.train import Resume, TrainConfig
from petseg.errors import InputError
from petseg.storage import checks, sharded_output
from petseg.storage.locations import absolute_locations
from petseg.training import recipes

MAY_CHANGE = {
    "cpus_per_worker",
    "data",
    "epochs",
    "feed_budget_gb",
    "images",
    "log_format",
    "masks",
    "max_failures",
    "mlflow",
    "name",
    "num_workers",
    "resume",
    "split_file",
    "storage",
    "use_gpu",
    "wait_min",
    "wandb",
}
"""Settings that may change when a run is resumed. Other settings, or other pairs by name, would make it another run."""

RESUME = "the last checkpoint is complete: fix this and continue with --resume"
"""Remedy of a run that could not write to its folder."""


def folder(config: TrainConfig) -> str:
    """Return the location of a run."""
    return storage.join(config.storage, config.name)


def first_settings(storage_location: str, name: str, resume: Resume = True) -> TrainConfig | None:
    """Return the settings a run was started with. They are the defaults of a start with --resume.

    If the run does not exist, return None for `resume` "auto", and raise `InputError` otherwise.
    """
    absolute = storage.absolute(storage_location)
    run = storage.join(absolute, name)
    if files.CONFIG not in storage.list_names(run):
        if resume == "auto":
            return None
        raise InputError(f"--resume --name {name}: there is no run in {run}")
    location = storage.join(run, files.CONFIG)
    first = from_json(TrainConfig, storage.read(location), location)
    return dataclasses.replace(first, storage=absolute, name=name, resume=True)


def resolve(config: TrainConfig, first: TrainConfig | None) -> TrainConfig:
    """Return the settings with a name and absolute locations. `first` holds the settings of the run to resume, if any.

    `resume` of the result is True or False.

    Raises `InputError` if the name of a new run is taken, or if the run to resume was started with other settings.
    """
    config = dataclasses.replace(
        recipes.resolve(config),
        name=config.name or datetime.now().astimezone().strftime("%Y-%m-%d-%H%M%S"),
        resume=first is not None,
    )
    config = absolute_locations(config)
    run = folder(config)
    checks.require_writable(run, "--storage")
    if first is None:
        # A start that ended at once leaves only its status and hidden files: its lock, or a temporary file.
        names = [name for name in storage.list_names(run) if name not in files.TRACES and not name.startswith(".")]
        if names:
            remedy = "--resume continues it" if files.CONFIG in names else "it holds other files"
            raise InputError(f"--name {config.name}: {run} already exists; choose another name ({remedy})")
        return config
    changed = [
        f"--{field.name.replace('_', '-')} (was {getattr(first, field.name)}, now {getattr(config, field.name)})"
        for field in dataclasses.fields(TrainConfig)
        if field.name not in MAY_CHANGE and getattr(first, field.name) != getattr(config, field.name)
    ]
    if changed:
        raise InputError(f"--resume: {run} was started with other settings: {', '.join(changed)}; leave them out")
    return config


def begin(config: TrainConfig, parts: dict[str, pa.Table]) -> None:
    """Write the settings and the pairs of each split. For a resumed run, check first that the pairs are the same.

    Raises `InputError` if they are not: the order of the data could not continue where it stopped. Raises it also if
    the folder cannot be written, or if another job has just taken the name.
    """
    run = folder(config)
    settings, location = storage.join(run, files.CONFIG), storage.join(run, files.RUN_MANIFEST)
    content = to_json(dataclasses.replace(config, resume=False)).encode()
    split = pa.array([split_name for split_name, pairs in parts.items() for _ in range(pairs.num_rows)], pa.string())
    pairs = pa.concat_tables(parts.values()).append_column("split", split)
    if not config.resume:
        storage.create(settings, content, "--name")
    elif files.RUN_MANIFEST in storage.list_names(run):
        # Locations are not compared: the folders may have been moved.
        before = sharded_output.parse_parquet(storage.read(location), ["id", "split"])
        if before != pairs.select(["id", "split"]):
            old, new = set(before["id"].to_pylist()), set(pairs["id"].to_pylist())
            raise InputError(
                f"--resume: the pairs, or their order, are not those that {run} was started with ({len(new - old)} "
                f"new, {len(old - new)} gone); start a new run with another --name"
            )
    storage.remove_leftovers(run)
    storage.remove_leftovers(storage.join(run, files.CHECKPOINTS_FOLDER))
    if config.resume:
        storage.write(settings, content)
    buffer = io.BytesIO()
    pq.write_table(pairs, buffer)
    storage.write(location, buffer.getvalue())


def trained_ids(location: str) -> set[str]:
    """Return the ids of the pairs that a run, or the run of a checkpoint, was trained on.

    They include those of the runs that it was started from with --init-from. Raises `InputError` if the run's folder
    has no list of its pairs.
    """
    run = _run_of(location)
    if run is None:
        raise InputError(
            f"--checkpoint {location}: no {files.RUN_MANIFEST}, which lists the pairs that it was trained on; give the "
            "folder that training printed, or one below its checkpoints/"
        )
    pairs = sharded_output.parse_parquet(storage.read(storage.join(run, files.RUN_MANIFEST)), ["id", "split"])
    ids = {pair["id"] for pair in pairs.to_pylist() if pair["split"] == "train"}
    settings = storage.join(run, files.CONFIG)
    start = from_json(TrainConfig, storage.read_input(settings), settings).init_from
    if start and _run_of(start) is None:
        print(f"note: {run} was started from {start}, and it is not known on which pairs that was trained")
    elif start:
        ids |= trained_ids(start)
    return ids


def _run_of(location: str) -> str | None:
    """Return the run with a list of its pairs that `location` is, or whose checkpoint it is; None if there is none."""
    folders = (location, location.rpartition("/")[0].rpartition("/")[0])  # a checkpoint is RUN/checkpoints/NAME
    return next((folder for folder in folders if files.RUN_MANIFEST in storage.list_names(folder)), None)


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Return the metrics of the finished epochs from `metrics.jsonl`; an empty list if the file does not exist yet."""
    # List first: with access to a prefix only, a missing file gives "access denied" instead of "not found".
    if files.RUN_METRICS not in storage.list_names(run):
        return []
    location = storage.join(run, files.RUN_METRICS)
    try:
        return [json.loads(line) for line in storage.read(location).splitlines()]
    except ValueError as error:
        raise InputError(f"{location}: a line of it is not JSON ({error}); was it edited?") from error


def write_metrics(run: str, history: list[dict[str, Any]]) -> None:
    """Write the whole of `metrics.jsonl`, one object per epoch: an object store cannot append."""
    lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
    storage.write(storage.join(run, files.RUN_METRICS), lines.encode())


def describe(epoch: dict[str, Any], epochs: int, pace_s: float) -> str:
    """Return one line for one epoch. `pace_s` is the number of seconds per epoch, from checkpoint to checkpoint."""
    by_class = " ".join(f"{name} {format_score(value)}" for name, value in epoch["val_iou"].items())
    remaining_s = round((epochs - epoch["epoch"]) * pace_s)
    return (
        f"epoch {epoch['epoch']:>{len(str(epochs))}}/{epochs}  train loss {format_score(epoch['train_loss'])}  "
        f"val loss {format_score(epoch['val_loss'])}  accuracy {format_score(epoch['val_pixel_accuracy'])}  "
        f"mIoU {format_score(epoch['val_miou'])} ({by_class})  "
        f"{epoch['train_images_per_s']:.0f} images/s  ETA {remaining_s // 60}:{remaining_s % 60:02}"
    )


def format_score(value: float | None) -> str:
    """Format a score or loss for display; an undefined one is a dash."""
    return "–" if value is None else f"{value:.3f}"
