"""Scores from integer statistics: count first, add up over batches and workers, divide once. Tensors only."""

import torch
from torch import Tensor

from petseg.labels import IGNORE_ID


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
    return torch.tensor(iou(confusion), dtype=torch.float64).nanmean().item()
