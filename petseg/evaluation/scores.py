"""Count how predictions agree with masks, add the counts up over pairs, and compute scores from them. No files."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from petseg.data.labels import IGNORE_ID
from petseg.evaluation import metrics
from petseg.inference.probabilities import most_probable

LEAST_PROBABILITY = 1e-4
"""Lowest probability that `disagreement` tells from 0: a pixel adds at most 9.2 nats."""


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


def views(class_names: tuple[str, ...], exclude_class: str = "", *, tiled: bool = False) -> list[View]:
    """Return the views to score: first all classes at the network's size, then the other views.

    `exclude_class` is the name of a class without which both sizes are scored once more; "" if no class is excluded.
    With `tiled`, there is only the original size.
    """
    all_classes = tuple(range(len(class_names)))
    others = tuple(i for i in all_classes if class_names[i] != exclude_class)
    choices = [all_classes] if others == all_classes else [all_classes, others]
    return [View(size, classes) for size in ((True,) if tiled else (False, True)) for classes in choices]


@torch.inference_mode()
def count(
    strips: Iterable[tuple[int, Tensor]], truth: np.ndarray, class_sets: Sequence[tuple[int, ...]]
) -> list[Counts]:
    """Compare a network's probabilities with a mask of class ids, uint8 (H, W), once for each set of classes.

    `strips` are those of a prediction at the mask's size. Pixels whose class is not in the set are ignored. The
    predicted class is the most probable of the set, and their probabilities are divided by their sum.
    """
    countings: list[_Counting] = []
    for top, strip in strips:
        countings = countings or [_Counting(truth, classes, strip.device) for classes in class_sets]
        for counting in countings:
            counting.add(top, strip)
    return [counting.counts() for counting in countings]


@torch.inference_mode()
def count_ids(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> Counts:
    """Compare predicted class ids with a mask, both uint8 (H, W). Their cross-entropy is NaN."""
    ids, target = torch.tensor(predicted), torch.tensor(truth)
    confusion = metrics.confusion_matrix(ids, target, num_classes)
    boundary = metrics.boundary_confusion(ids, target, num_classes, metrics.boundary_distance(*truth.shape))
    return Counts(confusion, boundary, math.nan)


@torch.inference_mode()
def disagreement(strips: Iterable[tuple[int, Tensor]], truth: np.ndarray) -> float | None:
    """Return the root mean square of the pixels' cross-entropy in nats; None if all pixels are ignored.

    It ranks masks by how likely they have a label error. `strips` and `truth` are those of `count`. Due to the squares,
    a pixel where the network is sure of another class counts more than several where it is unsure, such as those along
    contours. So a small part that is wrong counts more than in the mean: `benchmarks/label_errors.py` compares both.
    Probabilities below `LEAST_PROBABILITY` are raised to it, so that a few pixels do not decide.
    """
    squares, pixels = 0.0, 0
    for top, strip in strips:
        target = torch.tensor(truth[top : top + strip.shape[1]], device=strip.device)
        is_counted = target != IGNORE_ID
        of_label = strip.gather(0, torch.where(is_counted, target, 0).long()[None])[0]
        nats = of_label.clamp(LEAST_PROBABILITY, 1).log()
        squares += torch.where(is_counted, nats.square(), 0).sum(dtype=torch.float64).item()
        pixels += int(is_counted.sum())
    return math.sqrt(squares / pixels) if pixels else None


class _Counting:
    """Comparison of one prediction with a mask, for one set of classes, a strip of rows at a time."""

    def __init__(self, truth: np.ndarray, classes: tuple[int, ...], device: torch.device) -> None:
        renumbered = np.full(256, IGNORE_ID, np.uint8)
        renumbered[list(classes)] = np.arange(len(classes))
        self._classes = list(classes)
        self._target = torch.from_numpy(renumbered[truth]).to(device)
        self._predicted = torch.empty_like(self._target)
        self._confusion = torch.zeros((len(classes), len(classes)), dtype=torch.int64, device=device)
        self._cross_entropy = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, top: int, strip: Tensor) -> None:
        """Count a strip of probabilities, float32 (C, rows, W), whose first row is `top`."""
        rows = slice(top, top + strip.shape[1])
        if len(self._classes) < len(strip):
            strip = strip[self._classes]
        self._predicted[rows] = most_probable(strip)[1]
        self._confusion += metrics.confusion_matrix(self._predicted[rows], self._target[rows], len(self._classes))
        self._cross_entropy += metrics.cross_entropy_sum(strip, self._target[rows])

    def counts(self) -> Counts:
        distance = metrics.boundary_distance(*self._target.shape)
        boundary = metrics.boundary_confusion(self._predicted, self._target, len(self._classes), distance)
        return Counts(self._confusion.cpu(), boundary.cpu(), self._cross_entropy.item())


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
    """Return `scores` at the network's size, with the scores of the other views nested under their names.

    If there are only views at the original size, the scores of that size stand in both places. `size` says which size
    comes first.
    """

    def at(original_size: bool) -> dict[str, Any]:
        whole, *excluding = (
            scores(counts, [class_names[i] for i in view.classes])
            for view, counts in totals.items()
            if view.at_original_size == original_size
        )
        return whole | {"excluding_class": excluding[0] if excluding else None}

    original = at(True)
    if all(view.at_original_size for view in totals):
        return {"size": "original"} | original | {"original_size": original}
    return {"size": "network"} | at(False) | {"original_size": original}
