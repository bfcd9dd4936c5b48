"""Scores from integer statistics: count first, add up over batches and workers, divide once. Tensors only."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from petseg.data.labels import IGNORE_ID

_PIXELS_AT_A_TIME = 2**20


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Pixels counted by class: int64 (num_classes, num_classes), row = truth, column = prediction.

    `predicted` and `target` hold class ids in tensors of one shape and any integer dtype; pixels whose target is
    `IGNORE_ID` are not counted. No value leaves the device.
    """
    pairs = target.long() * num_classes + predicted
    # Ignored pixels go to one bin more, so that no mask, whose size the host would have to wait for, is needed.
    pairs = torch.where(target == IGNORE_ID, num_classes * num_classes, pairs).flatten()
    counts = torch.zeros(num_classes * num_classes + 1, dtype=torch.int64, device=target.device)
    counts.scatter_add_(0, pairs, torch.ones_like(pairs))
    return counts[:-1].view(num_classes, num_classes)


def pixel_accuracy(confusion: Tensor) -> float:
    """Share of the counted pixels that were right; NaN where none was counted."""
    return (confusion.diagonal().sum().double() / confusion.sum()).item()


def iou(confusion: Tensor) -> list[float]:
    """Intersection over union (Jaccard index) per class: TP / (TP + FP + FN).

    NaN for a class that is neither in the truth nor in the prediction.
    """
    hits = confusion.diagonal().double()
    return (hits / (confusion.sum(0) + confusion.sum(1) - hits)).tolist()


def mean_iou(confusion: Tensor) -> float:
    """Mean of `iou` over the classes for which it is defined."""
    return mean_defined(iou(confusion))


def dice(confusion: Tensor) -> list[float]:
    """Dice coefficient (F1 score) per class: 2 TP / (2 TP + FP + FN). NaN where `iou` is."""
    hits = confusion.diagonal().double()
    return (2 * hits / (confusion.sum(0) + confusion.sum(1))).tolist()


def boundary_confusion(predicted: Tensor, target: Tensor, num_classes: int, distance: int) -> Tensor:
    """What `boundary_iou` follows from: int64 (num_classes + 1, num_classes + 1), as `confusion_matrix` has it, where
    each pixel that lies further than `distance` from the contour of its class counts as class `num_classes`.

    `predicted` and `target` are uint8 (H, W). A class has its contour where it meets another, an ignored pixel or the
    edge of the picture.
    """
    # Else the contours would differ along the ignored pixels.
    predicted = torch.where(target == IGNORE_ID, target, predicted)
    predicted, target = (_only_boundary(class_ids, num_classes, distance) for class_ids in (predicted, target))
    counts = torch.zeros((num_classes + 1, num_classes + 1), dtype=torch.int64, device=target.device)
    rows = max(1, _PIXELS_AT_A_TIME // target.shape[1])  # counting takes some thirty times the memory of the ids
    for some_predicted, some_target in zip(predicted.split(rows), target.split(rows), strict=True):
        counts += confusion_matrix(some_predicted, some_target, num_classes + 1)
    return counts


def boundary_iou(confusion: Tensor) -> list[float]:
    """Boundary IoU per class from `boundary_confusion`: IoU of the pixels that lie near the contour of the class in
    the truth with those that lie near it in the prediction (Cheng et al., "Boundary IoU", CVPR 2021). NaN as in `iou`.
    """
    return iou(confusion)[:-1]


def boundary_distance(height: int, width: int) -> int:
    """Pixels that count as near for `boundary_iou`: 2 % of the diagonal, as in the paper's own code, at least 1."""
    return max(1, round(0.02 * math.hypot(height, width)))


def cross_entropy_sum(probabilities_chw: Tensor, target_hw: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the pixels that are not ignored: float64, no dimensions.

    Probabilities are float32 (C, H, W) and need not add up to 1: they are divided by their sum. None counts as less
    than the smallest normal float32, which is 87 nats.
    """
    is_counted = target_hw != IGNORE_ID
    of_truth = probabilities_chw.gather(0, torch.where(is_counted, target_hw, 0).long()[None])[0]
    least = torch.finfo(torch.float32).tiny
    nats = probabilities_chw.sum(0).clamp(min=least).log() - of_truth.clamp(min=least).log()
    return torch.where(is_counted, nats, 0).sum(dtype=torch.float64)


def mean_defined(scores: list[float]) -> float:
    """Mean of those that are not NaN; NaN where all are."""
    return torch.tensor(scores, dtype=torch.float64).nanmean().item()


def defined(value: float) -> float | None:
    """A score as JSON has it, which knows no NaN."""
    return value if math.isfinite(value) else None


def _only_boundary(class_ids: Tensor, num_classes: int, distance: int) -> Tensor:
    """Class ids where a pixel of another class is at most `distance` away, sideways or diagonally, and `num_classes`
    elsewhere; what is ignored stays so.

    Such a pixel is what eroding the class by a square would take away; that the lowest and the highest id in a square
    differ says it for all classes at once.
    """
    framed = F.pad(class_ids, [distance] * 4, value=IGNORE_ID)
    lowest, highest = (
        _slide(_slide(framed, 2 * distance + 1, pick, 0), 2 * distance + 1, pick, 1)
        for pick in (torch.minimum, torch.maximum)
    )
    is_kept = (lowest != highest) | (class_ids == IGNORE_ID)
    return torch.where(is_kept, class_ids, num_classes)


def _slide(values: Tensor, length: int, pick: Callable[[Tensor, Tensor], Tensor], dim: int) -> Tensor:
    """The lowest or highest of each `length` neighbours along a dimension, in log2(length) passes: (n - length + 1)."""
    seen = 1
    while seen < length:
        step = min(seen, length - seen)
        left = values.shape[dim] - step
        values = pick(values.narrow(dim, 0, left), values.narrow(dim, step, left))
        seen += step
    return values
