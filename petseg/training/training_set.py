"""Find the pairs to train on: in folders, in a prepared set, or the generated pets. No network and no Ray."""

from dataclasses import dataclass

import pyarrow as pa

from petseg import storage
from petseg.config.base import Resize, spaced
from petseg.config.train import TrainConfig
from petseg.data import demo, manifest, prepared, splits
from petseg.data.classes import Classes, resolve_classes
from petseg.data.labels import LabelMap
from petseg.data.prepared import Prepared
from petseg.errors import InputError
from petseg.training.recipes import RECIPES

_FIXED_BY_SET = (
    *("image_suffix", "mask_suffix", "classes", "num_classes", "label_map", "ignore_label", "masks_upright"),
    "image_size",
)
"""Settings that a prepared set has already fixed."""


@dataclass(frozen=True)
class TrainingSet:
    """Pairs of a training run, and how to read them."""

    images: str
    """Location of the folder of the photos."""
    parts: dict[str, pa.Table]
    """Manifest of each split: "train", "val" and "test"."""
    classes: Classes
    image_size: tuple[int, int]
    """Height and width in pixels to which photos and masks, or crops of them, are resized."""
    resize: Resize
    scale: float | None = None
    """Scale of the crops, or None for whole photos; see `ModelConfig.scale`."""
    dataset: Prepared | None = None
    """The prepared set that holds the decoded pairs, or None."""


def find_pairs(config: TrainConfig) -> TrainingSet:
    """Return the pairs that the flags name. Without --images and --data, generate the demo set.

    Raises `InputError` if a flag, a file or the split is invalid.
    """
    if config.data is not None:
        return _open_prepared(config, config.data)
    images, masks = config.images, config.masks
    if images is None or masks is None:
        print(f"no --images given: drawing {demo.COUNT} pets", flush=True)
        images, masks = demo.draw_set(storage.join(config.storage, "petseg-demo"))
    pairs = manifest.discover(images, masks, suffixes=(config.image_suffix, config.mask_suffix))
    classes = resolve_classes(config, masks, pairs)
    parts = _split(config, pairs, images)
    count = parts["train"].num_rows + parts["val"].num_rows
    height, width = config.crop_hw or config.image_size
    unit = "in crops of" if config.crop else "to"
    print(f"decoding {count} training and validation pairs {unit} height {height}, width {width}", flush=True)
    scale = config.scale if config.crop else None
    return TrainingSet(images, parts, classes, (height, width), RECIPES[config.recipe].resize, scale)


def _open_prepared(config: TrainConfig, location: str) -> TrainingSet:
    """Return the pairs of a prepared set. Raises `InputError` if flags ask for what the set has already fixed."""
    dataset = prepared.open_set(location)
    settings = dataset.settings
    for setting in _FIXED_BY_SET:
        if getattr(config, setting) != getattr(TrainConfig(), setting):
            flag = f"--{setting.replace('_', '-')}"
            raise InputError(
                f"{flag}: it was fixed when the set {location} was prepared; leave it out, or prepare the set again "
                "with it"
            )
    wanted = RECIPES[config.recipe].resize
    if settings.resize != wanted:
        print(
            f"note: the photos of {location} were resized with {settings.resize}, but --recipe {config.recipe} uses "
            f"{wanted}; to follow it, prepare the set again with --resize {wanted}"
        )
    label_map = LabelMap.parse(settings.label_map, len(settings.class_names))
    classes = Classes(settings.class_names, settings.palette, label_map)
    parts = _split(config, dataset.manifest, location)
    return TrainingSet(settings.images, parts, classes, settings.image_size, settings.resize, dataset=dataset)


def _split(config: TrainConfig, pairs: pa.Table, source: str) -> dict[str, pa.Table]:
    """Return the manifest of each split. Raises `InputError` if the training pairs do not fill a batch."""
    parts, warnings = splits.divide(
        pairs,
        config.split_file,
        seed=config.seed,
        val_count=config.val_count,
        val_fraction=config.val_fraction,
        val_fold=config.val_fold,
    )
    for warning in warnings:
        print(warning)
    batch_size = 1 if config.crop else config.batch_size or 1  # the number of crops is not known yet
    if parts["train"].num_rows < batch_size:
        raise InputError(
            f"{source}: {parts['train'].num_rows} training pairs do not fill one batch of {batch_size} "
            f"({parts['val'].num_rows} more are held out for validation); add pairs, or lower --val-count, "
            "--val-fraction or --batch-size"
        )
    return parts


def require_crops(config: TrainConfig, pairs: TrainingSet, num_crops: int) -> None:
    """Raise `InputError` if no training photo is larger than a crop, or if the crops do not fill a batch."""
    assert config.batch_size is not None
    size = f"{spaced(config.crop)} --scale {config.scale:g}"
    if num_crops == pairs.parts["train"].num_rows:
        covered = " × ".join(str(round(side / config.scale)) for side in pairs.image_size)
        raise InputError(
            f"--crop {size}: a crop covers {covered} pixels of a photo, and no training photo is larger; lower --crop, "
            "raise --scale, or give --image-size to train on whole photos"
        )
    if num_crops < config.batch_size:
        raise InputError(
            f"--crop {size}: {num_crops} crops do not fill one batch of {config.batch_size}; add pairs, or lower "
            "--crop or --batch-size"
        )
