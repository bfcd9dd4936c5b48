"""Score a network on pairs: count statistics per pair, add them up, and draw the worst pairs.

This runs in a plain process without Ray. Threads decode ahead of the network and count behind it. Apart from a row of
numbers per pair, memory does not grow with the number of pairs. This module writes no files.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from petseg import storage
from petseg.config.model import ModelConfig
from petseg.data import decode, manifest, visualize
from petseg.data.image_file import DecodeError
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.orientation import Drawn
from petseg.data.pairs import Pair, UnclearMaskError, decode_pair
from petseg.evaluation import metrics
from petseg.inference.predictor import Prediction, Predictor, enlarge, most_probable
from petseg.lookahead import map_ahead

WORST = 20
"""Maximum number of pairs to draw."""

_PAIRS_AT_A_TIME = 256  # maximum number of pairs decoded before the network sees them
_PIXELS_AT_A_TIME = 2**26  # limit on the pixels of their masks at the original size; larger masks mean fewer pairs

T = TypeVar("T")

ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("cross_entropy", pa.float64()),
        ("pixel_accuracy", pa.float64()),
        ("miou", pa.float64()),
        ("iou", pa.list_(pa.float64())),
        ("boundary_miou", pa.float64()),
        ("error", pa.string()),
    ]
)
"""Schema of the per-pair table. Height and width are the upright photo's own; scores are at the network's size."""


class View(NamedTuple):
    """Image size and set of classes for which a pair is scored."""

    at_original_size: bool
    """Score at the photo's original size; if False, at the network's size."""

    classes: tuple[int, ...]
    """Class ids to score. Pixels of other classes are ignored, and the network must choose among these classes."""


@dataclass(frozen=True)
class Counts:
    """Statistics that are added up over pairs, on the CPU. Every score is a ratio of them."""

    confusion: Tensor
    """Result of `metrics.confusion_matrix`."""

    boundary: Tensor
    """Result of `metrics.boundary_confusion`."""

    cross_entropy: float
    """Cross-entropy in nats, summed over the pixels that are not ignored."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.confusion + other.confusion, self.boundary + other.boundary, self.cross_entropy + other.cross_entropy
        )


@dataclass(frozen=True)
class Result:
    """Scores and statistics of one pair."""

    row: dict[str, Any]
    """Values by the column names of `ROWS`. A missing key means null."""

    counts: dict[View, Counts]
    """Statistics by view; empty if the pair could not be decoded."""

    drawn: Drawn | None
    """See `pairs.drawn`. With "unclear" and no counts, the pair was not decoded."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pair:
    """A row of the manifest with its decoded photo and mask, or with the error."""

    row: dict[str, Any]
    decoded: Pair | None = None
    error: str | None = None
    drawn: Drawn | None = None


class Evaluator:
    """Scorer of a network on pairs. `predictor` must accept photos at the image size of `model`."""

    def __init__(
        self,
        predictor: Predictor,
        model: ModelConfig,
        label_map: LabelMap,
        max_pixels: int,
        threads: int,
        exclude_class: str = "",
        masks_upright: bool | None = None,
    ) -> None:
        self._predictor = predictor
        self._model = model
        self._label_map = label_map
        self._max_pixels = max_pixels
        self._threads = threads
        self.masks_upright = masks_upright
        self._views = views(model.class_names, exclude_class)

    def results(self, pairs: pa.Table) -> Iterator[Result]:
        """Yield one result for each row of a manifest, in order."""
        return self._each(pairs, self._score)

    def pictures(self, pairs: pa.Table) -> Iterator[bytes | None]:
        """Yield `visualize.comparison` for each row of a manifest, in order; None if the pair cannot be decoded."""
        return self._each(pairs, self._draw)

    def _each(self, pairs: pa.Table, finish: Callable[[tuple[_Pair, Prediction | None]], T]) -> Iterator[T]:
        ahead = 2 * self._threads
        with ThreadPoolExecutor(self._threads) as pool:
            contents = manifest.read_pairs(pairs, decode.max_bytes(self._max_pixels))
            decoded = map_ahead(pool, self._decode, contents, ahead)
            yield from map_ahead(pool, finish, self._predict(decoded), ahead)

    def _decode(self, pair: tuple[dict[str, str], bytes, bytes, str]) -> _Pair:
        row, photo_content, mask_content, error = pair
        if error:
            return _Pair(row, error=error)
        try:
            decoded = decode_pair(
                photo_content,
                mask_content,
                self._model.image_size,
                self._label_map,
                self._max_pixels,
                self._model.resize,
                self.masks_upright,
            )
        except UnclearMaskError as error:
            return _Pair(row, error=str(error), drawn="unclear")
        except DecodeError as error:
            return _Pair(row, error=f"the mask: {error}" if error.in_mask else str(error))
        return _Pair(row, decoded, drawn=decoded.drawn)

    def _predict(self, pairs: Iterable[_Pair]) -> Iterator[tuple[_Pair, Prediction | None]]:
        for group in _groups(pairs):
            predictions = self._predictor([pair.decoded.photo for pair in group if pair.decoded is not None])
            for pair in group:
                yield pair, None if pair.decoded is None else next(predictions)

    def _score(self, predicted: tuple[_Pair, Prediction | None]) -> Result:
        pair, prediction = predicted
        if prediction is None or pair.decoded is None:
            return Result({"id": pair.row["id"], "error": pair.error}, {}, pair.drawn)
        counts = {}
        for view in self._views:
            truth = pair.decoded.truth_ids() if view.at_original_size else pair.decoded.class_ids
            counts[view] = count(prediction.probabilities, truth, view.classes)
        pair_scores = scores(counts[self._views[0]], self._model.class_names)
        row = {"id": pair.row["id"], "height": prediction.height, "width": prediction.width, "error": None}
        row |= {name: pair_scores[name] for name in ("cross_entropy", "pixel_accuracy", "miou", "boundary_miou")}
        return Result(row | {"iou": list(pair_scores["iou"].values())}, counts, pair.drawn, pair.decoded.photo.notes)

    def _draw(self, predicted: tuple[_Pair, Prediction | None]) -> bytes | None:
        pair, prediction = predicted
        if prediction is None or pair.decoded is None:
            return None
        photo = storage.read(pair.row["image"], at_most=decode.max_bytes(self._max_pixels))
        small = decode.decode_small(photo, visualize.COMPARISON_SIDE, self._max_pixels)
        return visualize.comparison(small, pair.decoded.truth_ids(), prediction.mask().class_ids, self._model.palette)


def views(class_names: tuple[str, ...], exclude_class: str = "") -> list[View]:
    """Return the views to score: first all classes at the network's size, then the other views.

    `exclude_class` is the name of a class without which both sizes are scored once more; "" for none.
    """
    all_classes = tuple(range(len(class_names)))
    others = tuple(i for i in all_classes if class_names[i] != exclude_class)
    choices = [all_classes] if others == all_classes else [all_classes, others]
    return [View(at_original_size, classes) for at_original_size in (False, True) for classes in choices]


@torch.inference_mode()
def count(probabilities_chw: Tensor, truth: np.ndarray, classes: tuple[int, ...]) -> Counts:
    """Compare a network's probabilities, float32 (C, h, w), with a mask of class ids, uint8 (H, W).

    The probabilities are enlarged to the mask's size as in a prediction, a strip of rows at a time. Pixels whose class
    is not in `classes` are ignored. The predicted class is the most probable of `classes`, and their probabilities are
    divided by their sum.
    """
    height, width = truth.shape
    renumbered = np.full(256, IGNORE_ID, np.uint8)
    renumbered[list(classes)] = np.arange(len(classes))
    target = torch.from_numpy(renumbered[truth]).to(probabilities_chw.device)
    predicted = torch.empty_like(target)
    confusion = torch.zeros((len(classes), len(classes)), dtype=torch.int64, device=target.device)
    cross_entropy = torch.zeros((), dtype=torch.float64, device=target.device)
    for top, strip in enlarge(probabilities_chw[list(classes)], height, width):
        rows = slice(top, top + strip.shape[1])
        predicted[rows] = most_probable(strip)[1]
        confusion += metrics.confusion_matrix(predicted[rows], target[rows], len(classes))
        cross_entropy += metrics.cross_entropy_sum(strip, target[rows])
    distance = metrics.boundary_distance(height, width)
    boundary = metrics.boundary_confusion(predicted, target, len(classes), distance)
    return Counts(confusion.cpu(), boundary.cpu(), cross_entropy.item())


def scores(counts: Counts, class_names: Iterable[str]) -> dict[str, Any]:
    """Return the scores. An undefined score, such as the IoU of a class that never occurs, is None."""

    def by_class(of_classes: list[float]) -> dict[str, float | None]:
        return dict(zip(class_names, map(metrics.finite_or_none, of_classes), strict=True))

    pixels = int(counts.confusion.sum())
    boundary_iou = metrics.boundary_iou(counts.boundary)
    return {
        "pixels": pixels,
        "cross_entropy": metrics.finite_or_none(counts.cross_entropy / pixels) if pixels else None,
        "pixel_accuracy": metrics.finite_or_none(metrics.pixel_accuracy(counts.confusion)),
        "miou": metrics.finite_or_none(metrics.mean_iou(counts.confusion)),
        "iou": by_class(metrics.iou(counts.confusion)),
        "dice": by_class(metrics.dice(counts.confusion)),
        "boundary_miou": metrics.finite_or_none(metrics.mean_defined(boundary_iou)),
        "boundary_iou": by_class(boundary_iou),
        "confusion": counts.confusion.tolist(),
    }


def summarise(totals: dict[View, Counts], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return `scores` at the network's size, with the scores of the other views nested under their names."""

    def at(original_size: bool) -> dict[str, Any]:
        whole, *excluding = (
            scores(counts, [class_names[i] for i in view.classes])
            for view, counts in totals.items()
            if view.at_original_size == original_size
        )
        return whole | {"excluding_class": excluding[0] if excluding else None}

    return at(False) | {"original_size": at(True)}


def worst_pairs(rows: pa.Table) -> list[int]:
    """Return the numbers of up to `WORST` rows with the highest cross-entropy, worst first.

    Ranked by cross-entropy, because mIoU weighs a ten-pixel class like any other.
    """
    values = rows["cross_entropy"].to_pylist()
    known = [number for number, value in enumerate(values) if value is not None]
    return sorted(known, key=lambda number: (-values[number], number))[:WORST]


def _groups(pairs: Iterable[_Pair]) -> Iterator[list[_Pair]]:
    """Yield groups of pairs that are in memory together: several batches, or fewer pairs if they are large."""
    group, pixels = [], 0
    for pair in pairs:
        group.append(pair)
        pixels += pair.decoded.photo.height * pair.decoded.photo.width if pair.decoded is not None else 0
        if len(group) == _PAIRS_AT_A_TIME or pixels >= _PIXELS_AT_A_TIME:
            yield group
            group, pixels = [], 0
    yield group
