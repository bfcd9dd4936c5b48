"""Compute scores from sums: count pixels, add up over batches and workers, divide once. No files, no network."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from petseg.data.labels import IGNORE_ID

_PIXELS_AT_A_TIME = 2**20


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Return pixel counts by class: int64 (num_classes, num_classes), row = truth, column = prediction.

    `predicted` and `target` hold class ids in tensors of the same shape and any integer dtype. Pixels whose target is
    `IGNORE_ID` are not counted. No value leaves the device.
    """
    pairs = target.long() * num_classes + predicted
    # Ignored pixels go to an extra bin. A boolean mask would make the host wait for the size of the result.
    pairs = torch.where(target == IGNORE_ID, num_classes * num_classes, pairs).flatten()
    counts = torch.zeros(num_classes * num_classes + 1, dtype=torch.int64, device=target.device)
    counts.scatter_add_(0, pairs, torch.ones_like(pairs))
    return counts[:-1].view(num_classes, num_classes)


def pixel_accuracy(confusion: Tensor) -> float:
    """Return the fraction of the counted pixels that are correct; NaN if no pixel was counted."""
    return (confusion.diagonal().sum().double() / confusion.sum()).item()


def iou(confusion: Tensor) -> list[float]:
    """Return intersection over union (Jaccard index) per class: TP / (TP + FP + FN).

    It is NaN for a class that is neither in the truth nor in the prediction.
    """
    hits = confusion.diagonal().double()
    return (hits / (confusion.sum(0) + confusion.sum(1) - hits)).tolist()


def mean_iou(confusion: Tensor) -> float:
    """Return the mean of `iou` over the classes for which it is defined."""
    return mean_defined(iou(confusion))


def dice(confusion: Tensor) -> list[float]:
    """Return the Dice coefficient (F1 score) per class: 2 TP / (2 TP + FP + FN). It is NaN where `iou` is NaN."""
    hits = confusion.diagonal().double()
    return (2 * hits / (confusion.sum(0) + confusion.sum(1))).tolist()


def boundary_confusion(predicted: Tensor, target: Tensor, num_classes: int, distance: int) -> Tensor:
    """Return the counts for `boundary_iou`: int64 (num_classes + 1, num_classes + 1), laid out like `confusion_matrix`.

    A pixel further than `distance` from the contour of its class counts as class `num_classes`.

    `predicted` and `target` are uint8 (H, W). The contour of a class is where it meets another class, an ignored pixel
    or the edge of the picture.
    """
    # Ignore the same pixels in both; otherwise the contours would differ along the ignored pixels.
    predicted = torch.where(target == IGNORE_ID, target, predicted)
    predicted, target = (_only_boundary(class_ids, num_classes, distance) for class_ids in (predicted, target))
    counts = torch.zeros((num_classes + 1, num_classes + 1), dtype=torch.int64, device=target.device)
    rows = max(1, _PIXELS_AT_A_TIME // target.shape[1])  # counting takes about thirty times the memory of the ids
    for predicted_rows, target_rows in zip(predicted.split(rows), target.split(rows), strict=True):
        counts += confusion_matrix(predicted_rows, target_rows, num_classes + 1)
    return counts


def boundary_iou(confusion: Tensor) -> list[float]:
    """Return boundary IoU per class from `boundary_confusion` (Cheng et al., "Boundary IoU", CVPR 2021).

    It is the IoU of the pixels near the class's contour in the truth with those near its contour in the prediction. It
    is NaN in the same cases as `iou`.
    """
    return iou(confusion)[:-1]


def boundary_distance(height: int, width: int) -> int:
    """Return the contour distance in pixels for `boundary_iou`: 2 % of the diagonal, as in the paper's code, min. 1."""
    return max(1, round(0.02 * math.hypot(height, width)))


def cross_entropy_sum(probabilities_chw: Tensor, target_hw: Tensor) -> Tensor:
    """Return the cross-entropy in nats, summed over the pixels that are not ignored: a float64 scalar tensor.

    Probabilities are float32 (C, H, W) and need not add up to 1: they are divided by their sum. Values below the
    smallest normal float32 are raised to it, so a pixel adds at most about 87 nats. If all probabilities of a pixel
    are 0, they count as equal.
    """
    is_counted = target_hw != IGNORE_ID
    of_truth = probabilities_chw.gather(0, torch.where(is_counted, target_hw, 0).long()[None])[0]
    least = torch.finfo(torch.float32).tiny
    total = probabilities_chw.sum(0)
    nats = total.clamp(min=least).log() - of_truth.clamp(min=least).log()
    nats = torch.where(total < least, math.log(len(probabilities_chw)), nats)
    return torch.where(is_counted, nats, 0).sum(dtype=torch.float64)


def mean_defined(scores: list[float]) -> float:
    """Return the mean of the scores that are not NaN; NaN if all are."""
    return torch.tensor(scores, dtype=torch.float64).nanmean().item()


def finite_or_none(value: float) -> float | None:
    """Return a score for JSON: None if it is not finite, because JSON has no NaN."""
    return value if math.isfinite(value) else None


def _only_boundary(class_ids: Tensor, num_classes: int, distance: int) -> Tensor:
    """Keep class ids near a contour and set all others to `num_classes`; ignored pixels stay ignored.

    A pixel is near a contour if the square of side 2 * `distance` + 1 around it contains another class, an ignored
    pixel or a place outside the picture. Eroding the class by the square would remove exactly these pixels. The lowest
    and the highest id in the square differ exactly there, which tests all classes at once.
    """
    framed = F.pad(class_ids, [distance] * 4, value=IGNORE_ID)
    lowest, highest = (
        _slide(_slide(framed, 2 * distance + 1, pick, 0), 2 * distance + 1, pick, 1)
        for pick in (torch.minimum, torch.maximum)
    )
    is_kept = (lowest != highest) | (class_ids == IGNORE_ID)
    return torch.where(is_kept, class_ids, num_classes)


def _slide(values: Tensor, length: int, pick: Callable[[Tensor, Tensor], Tensor], dim: int) -> Tensor:
    """Return the minimum or maximum of each `length` neighbours along a dimension, whose size becomes n - length + 1.

    It takes log2(length) passes.
    """
    seen = 1
    while seen < length:
        step = min(seen, length - seen)
        left = values.shape[dim] - step
        values = pick(values.narrow(dim, 0, left), values.narrow(dim, step, left))
        seen += step
    return values
