"""A training run's folder: begun, gone on with, and what it says of itself. No network and no Ray here.

`config.json` (the resolved `TrainConfig`), `manifest.parquet` (every pair and the side of the split it is on),
`metrics.jsonl` (an object per epoch) and `checkpoints/`.
"""

import dataclasses
import io
import json
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import storage
from petseg.config.base import from_json, to_json
from petseg.config.train import TrainConfig
from petseg.data import splits
from petseg.errors import InputError
from petseg.storage import checks
from petseg.training import recipes

MAY_CHANGE = {
    "cpus_per_worker",
    "data",
    "epochs",
    "feed_budget_gb",
    "images",
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
"""Settings that a resumed run may be given anew. Any other would make it another run; so would other pairs, by name."""


def folder(config: TrainConfig) -> str:
    """The location of a run."""
    return storage.join(config.storage, config.name)


def first_settings(storage_location: str, name: str) -> TrainConfig:
    """The settings a run has been started with, to be the defaults of a start with --resume.

    Raises `InputError` where there is no such run.
    """
    absolute = storage.absolute(storage_location)
    run = storage.join(absolute, name)
    if "config.json" not in storage.list_names(run):
        raise InputError(f"--resume --name {name}: there is no run in {run}")
    location = storage.join(run, "config.json")
    first = from_json(TrainConfig, storage.read(location), location)
    return dataclasses.replace(first, storage=absolute, name=name, resume=True)


def resolve(config: TrainConfig, first: TrainConfig | None) -> TrainConfig:
    """The settings with a name and with absolute locations; `first` are those of the run that is resumed, if one is.

    Raises `InputError` where the name of a new run is taken, or a run was started with other settings.
    """
    config = dataclasses.replace(
        recipes.resolve(config),
        name=config.name or datetime.now().astimezone().strftime("%Y-%m-%d-%H%M%S"),
        storage=storage.absolute(config.storage),
        images=config.images and storage.absolute(config.images),
        masks=config.masks and storage.absolute(config.masks),
        data=config.data and storage.absolute(config.data),
        init_from=config.init_from and storage.absolute(config.init_from),
        split_file=tuple(_absolute_list(entry) for entry in config.split_file),
    )
    run = folder(config)
    checks.require_writable(run, "--storage")
    if first is None:
        names = storage.list_names(run)
        if names:
            remedy = "--resume goes on with it" if "config.json" in names else "it holds other files"
            raise InputError(f"--name {config.name}: {run} is there already; choose another name ({remedy})")
        return config
    changed = [
        f"--{field.name.replace('_', '-')} (was {getattr(first, field.name)}, now {getattr(config, field.name)})"
        for field in dataclasses.fields(TrainConfig)
        if field.name not in MAY_CHANGE and getattr(first, field.name) != getattr(config, field.name)
    ]
    if changed:
        raise InputError(f"--resume: {run} was started with other settings: {', '.join(changed)}; leave them out")
    return config


def _absolute_list(entry: str) -> str:
    """An entry of --split-file with an absolute location."""
    side, equals, location = entry.partition("=")
    return f"{side}={storage.absolute(location)}" if equals and side in splits.SIDES else storage.absolute(entry)


def begin(config: TrainConfig, sides: dict[str, pa.Table]) -> None:
    """Write what a new run starts from, the pairs of each side of its split among it; of a resumed one, check that they
    are the same.

    Raises `InputError` where they are not, since the order of the data would not go on where it stopped; or where the
    folder cannot be written, or another job has just taken the name.
    """
    run = folder(config)
    settings, location = storage.join(run, "config.json"), storage.join(run, "manifest.parquet")
    content = to_json(dataclasses.replace(config, resume=False)).encode()
    split = pa.array([side for side, pairs in sides.items() for _ in range(pairs.num_rows)], pa.string())
    pairs = pa.concat_tables(sides.values()).append_column("split", split)
    if not config.resume:
        storage.create(settings, content, "--name")
    elif "manifest.parquet" in storage.list_names(run):
        storage.remove_leftovers(run)
        storage.remove_leftovers(storage.join(run, "checkpoints"))
        # Not the locations: the folders may have been moved.
        before = storage.parse_parquet(storage.read(location), ["id", "split"])
        if before != pairs.select(["id", "split"]):
            old, new = set(before["id"].to_pylist()), set(pairs["id"].to_pylist())
            raise InputError(
                f"--resume: the pairs, or their order, are not those that {run} was started with ({len(new - old)} "
                f"new, {len(old - new)} gone); start a new run with another --name"
            )
        storage.write(settings, content)
    buffer = io.BytesIO()
    pq.write_table(pairs, buffer)
    storage.write(location, buffer.getvalue())


def read_metrics(run: str) -> list[dict[str, Any]]:
    """The epochs so far, from `metrics.jsonl`; none where it is not there yet."""
    # Listed first: who may read what is below a prefix is denied what is not there, instead of told so.
    if "metrics.jsonl" not in storage.list_names(run):
        return []
    location = storage.join(run, "metrics.jsonl")
    try:
        return [json.loads(line) for line in storage.read(location).splitlines()]
    except ValueError as error:
        raise InputError(f"{location}: a line of it is not JSON ({error}); was it edited?") from error


def write_metrics(run: str, history: list[dict[str, Any]]) -> None:
    """Write `metrics.jsonl`, one object per epoch, whole: an object store cannot append."""
    lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
    storage.write(storage.join(run, "metrics.jsonl"), lines.encode())


def describe(epoch: dict[str, Any], epochs: int, pace_s: float) -> str:
    """One line for one epoch, where each takes so many seconds, from checkpoint to checkpoint."""
    by_class = " ".join(f"{name} {score(value)}" for name, value in epoch["val_iou"].items())
    remaining_s = round((epochs - epoch["epoch"]) * pace_s)
    return (
        f"epoch {epoch['epoch']:>{len(str(epochs))}}/{epochs}  train loss {score(epoch['train_loss'])}  "
        f"val loss {score(epoch['val_loss'])}  accuracy {score(epoch['val_pixel_accuracy'])}  "
        f"mIoU {score(epoch['val_miou'])} ({by_class})  "
        f"{epoch['train_images_per_s']:.0f} images/s  ETA {remaining_s // 60}:{remaining_s % 60:02}"
    )


def score(value: float | None) -> str:
    """A score or loss for reading; one that is not defined is a dash."""
    return "–" if value is None else f"{value:.3f}"
