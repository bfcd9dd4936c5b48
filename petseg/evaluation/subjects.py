"""Load what an evaluation scores: the network of a checkpoint, or masks in a folder."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from petseg import files, storage
from petseg.config.base import Precision
from petseg.config.evaluate import EvaluateConfig
from petseg.config.model import ModelConfig
from petseg.data import labels
from petseg.data.classes import read_classes
from petseg.data.labels import LabelMap
from petseg.data.listing import UNKNOWN_VERSION, list_images
from petseg.data.tiles import tiling_of
from petseg.errors import InputError
from petseg.evaluation.evaluator import Evaluator
from petseg.evaluation.given_masks import GivenMasks
from petseg.evaluation.shards import Scorer
from petseg.inference.existing import read_plan
from petseg.inference.plan import FORMAT
from petseg.inference.predictor import Predictor
from petseg.models import checkpoint


@dataclass(frozen=True)
class NetworkSettings:
    """All that is needed to score a network. It is sent to each worker."""

    model: ModelConfig
    weights: bytes
    location: str
    """Location of the checkpoint, for messages."""
    precision: Precision
    batch_size: int
    use_gpu: bool
    label_map: LabelMap
    exclude_class: str
    max_pixels: int

    def without_gpu(self) -> "NetworkSettings":
        """Return the settings for a machine without a GPU."""
        return dataclasses.replace(self, use_gpu=False)

    def build(self, threads: int) -> Scorer:
        """Return the scorer, with this number of threads for everything but a GPU's work."""
        torch.set_num_threads(1)  # of torch's own: the predictor and the scorer start theirs
        predictor = Predictor(
            checkpoint.build_model(self.model, self.weights, self.location),
            torch.device("cuda" if self.use_gpu else "cpu"),
            self.batch_size,
            self.model.image_size,
            self.precision,
            resize=self.model.resize,
            tiling=tiling_of(self.model),
            threads=1 if self.use_gpu else threads,
        )
        return Evaluator(predictor, self.model, self.label_map, self.max_pixels, threads, self.exclude_class)


@dataclass(frozen=True)
class MaskSettings:
    """All that is needed to score given masks."""

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_map: LabelMap
    predicted_map: LabelMap
    max_pixels: int

    def without_gpu(self) -> "MaskSettings":
        """Return the settings: masks need no GPU."""
        return self

    def build(self, threads: int) -> Scorer:
        """Return the scorer."""
        return GivenMasks(self.class_names, self.palette, self.label_map, self.predicted_map, self.max_pixels, threads)


@dataclass(frozen=True)
class Subject:
    """Network or folder of masks, and the pairs on which it is scored."""

    settings: NetworkSettings | MaskSettings
    pairs: pa.Table
    """Manifest of the pairs; for given masks with the column `predicted`, their locations."""
    class_names: tuple[str, ...]
    origin: dict[str, Any]
    """Entries of `metrics.json` on the network or the masks."""
    label_map: LabelMap
    versions: str
    """SHA-256 of the network, or of the versions of the masks."""


def find_network(config: EvaluateConfig, pairs: pa.Table, *, has_own_gpu: bool) -> Subject:
    """Return the network of --checkpoint. With `has_own_gpu`, --use-gpu means a GPU of this machine.

    Raises `InputError` if the network cannot be evaluated on the pairs, or there is no such GPU.
    """
    if config.use_gpu and has_own_gpu and not torch.cuda.is_available():
        raise InputError("--use-gpu: torch finds no GPU on this machine; leave it out")
    trained = checkpoint.find(storage.absolute(config.checkpoint))
    model = trained.model
    _require_excludable(config.exclude_class, model.class_names)
    label_map = _label_map(config.label_map, storage.absolute(config.masks), model)
    weights = checkpoint.read_weights(trained)
    settings = NetworkSettings(
        model=model,
        weights=weights,
        location=trained.location,
        precision=config.precision,
        batch_size=config.photos_per_pass,
        use_gpu=config.use_gpu,
        label_map=label_map,
        exclude_class=config.exclude_class,
        max_pixels=config.max_pixels,
    )
    sha256 = checkpoint.fingerprint(trained, weights)
    origin = {"checkpoint": {"location": trained.location, "epoch": trained.epoch, "sha256": sha256}}
    return Subject(settings, pairs, model.class_names, origin, label_map, sha256)


def find_masks(config: EvaluateConfig, pairs: pa.Table) -> Subject:
    """Return the masks of --from, which have the names of the photos.

    Their values are class ids if a prediction has written them. Otherwise they mean what the `classes.json` beside them
    says, or else what those in --masks mean. A pair without a mask, such as that of a photo that could not be
    predicted, will get an error. Raises `InputError` if the classes are not known, or if no pair has a mask.
    """
    location, masks = storage.absolute(config.from_), storage.absolute(config.masks)
    is_prediction = files.PLAN in storage.list_names(location)
    names, palette, label_map = _classes(config, location, masks, is_prediction)
    if is_prediction:
        predicted_map = LabelMap.parse(",".join(f"{i}:{i}" for i in range(len(names))), len(names), names)
        location = storage.join(location, files.MASK_FOLDER)
        if not storage.list_names(location):
            raise InputError(
                f"--from {config.from_}: the prediction has no {files.MASK_FOLDER}/; predict without --no-png"
            )
    else:
        described = read_classes(location)
        text, ignored = (described.label_map, described.ignore_label) if described else (str(label_map), "")
        predicted_map = LabelMap.parse(text, len(names), names, ignored, require_all=False)
    found = list_images(location, "--from", skipped={}, versions=True)
    index: Any = pc.index_in(pairs["id"], value_set=found["id"])  # pyright: ignore[reportAttributeAccessIssue]
    if index.null_count == pairs.num_rows:
        raise InputError(f"--from {config.from_}: no mask there has the name of a photo, such as {pairs['id'][0]}")
    predicted = found.take(index)
    expected = pa.array([storage.join(location, f"{row_id}.png") for row_id in pairs["id"].to_pylist()])
    pairs = pairs.append_column("predicted", pc.coalesce(predicted["image"], expected))  # pyright: ignore[reportAttributeAccessIssue]
    versions = hashlib.sha256(predicted["version"].fill_null(UNKNOWN_VERSION).to_numpy().tobytes()).hexdigest()
    settings = MaskSettings(names, palette, label_map, predicted_map, config.max_pixels)
    return Subject(settings, pairs, names, {"predicted": location}, label_map, versions)


def _classes(
    config: EvaluateConfig, location: str, masks: str, is_prediction: bool
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], LabelMap]:
    """Return the names and colours of the classes of given masks, and the map of the true masks' values."""
    described = read_classes(masks)
    if is_prediction:
        plan = read_plan(location)
        if plan.get("format") != FORMAT:
            raise InputError(f"--from {location}: written by another version of petseg; predict again")
        names = tuple(plan["classes"])
        palette = tuple(tuple(colour) for colour in plan["palette"])
        if described is not None and described.classes != names and not config.label_map:
            raise InputError(
                f"--masks {masks}: its classes are {', '.join(described.classes)}, and those of --from "
                f"{', '.join(names)}; give --label-map, which maps its values to the classes of --from"
            )
    elif described is not None:
        names, palette = described.classes, described.palette or labels.palette(len(described.classes))
    else:
        raise InputError(
            f"--from {config.from_}: the classes are not known; put a {files.CLASSES} into {masks} that names them"
        )
    text = config.label_map or (described.label_map if described else "")
    ignored = described.ignore_label if described and not config.label_map else ""
    return names, palette, LabelMap.parse(text, len(names), names, ignored, require_all=False)


def _require_excludable(name: str, class_names: tuple[str, ...]) -> None:
    if name and name not in class_names:
        raise InputError(f"--exclude-class {name}: no such class; give one of {', '.join(class_names)}")
    if name and len(class_names) == 2:
        raise InputError(f"--exclude-class {name}: the network has only two classes; leave it out")


def _label_map(text: str, masks: str, model: ModelConfig) -> LabelMap:
    """Return the map of --label-map, else that of the masks' classes.json if it has the network's classes, else the map
    the network was trained with.
    """
    described = None if text else read_classes(masks)
    if described is not None and described.classes == model.class_names:
        return LabelMap.parse(described.label_map, model.num_classes, model.class_names, described.ignore_label)
    if described is not None:
        location = storage.join(masks, files.CLASSES)
        print(
            f"note: {location} is not used: its classes are {', '.join(described.classes)}, not the network's; the raw "
            "values are mapped as in training"
        )
    # The masks need not have every class, such as those of a set with few classes.
    return LabelMap.parse(text or model.label_map, model.num_classes, model.class_names, require_all=False)
