"""What training lowers. Tensors only."""

import torch
import torch.nn.functional as F
from torch import Tensor

from petseg.data.labels import IGNORE_ID
from petseg.errors import InputError


def cross_entropy_sum(logits_nchw: Tensor, target_nhw: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats, summed over the pixels that are not ignored, in fp32; target is uint8 (N, H, W).

    `class_weights`, float32 (C,), multiply it by the class of the truth.
    """
    return F.cross_entropy(
        logits_nchw.float(), target_nhw.long(), class_weights, ignore_index=IGNORE_ID, reduction="sum"
    )


def total_weight(target_nhw: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """What to divide `cross_entropy_sum` by: the pixels that are not ignored, or the sum of their weights."""
    counted = target_nhw != IGNORE_ID
    if class_weights is None:
        return counted.sum().float()
    return (class_weights[torch.where(counted, target_nhw, 0).long()] * counted).sum()


def class_weights(text: str, class_pixels: tuple[int, ...]) -> Tensor | None:
    """The weights that --class-weights names: float32 (C,), of mean 1 over the pixels; None where all count alike.

    "balanced" is n / (C · n_c), as in scikit-learn: each class has an equal part in the loss.
    Raises `InputError` where they are not as many as classes, or a class to be balanced has no pixel.
    """
    if not text:
        return None
    pixels = torch.tensor(class_pixels, dtype=torch.float64)
    if text == "balanced":
        if not pixels.all():
            raise InputError("--class-weights balanced: a class has no pixel in the masks to train on; give numbers")
        return (pixels.sum() / (len(pixels) * pixels)).float()
    try:
        weights = torch.tensor([float(part) for part in text.split(",")], dtype=torch.float64)
    except ValueError:
        weights = torch.empty(0)
    if len(weights) != len(pixels) or not (weights >= 0).all() or not weights.isfinite().all() or not weights.any():
        raise InputError(
            f'--class-weights {text}: give "balanced", or {len(pixels)} numbers of 0 or more, one for each class'
        )
    if not (weights * pixels).any():
        raise InputError(f"--class-weights {text}: the classes that have a weight have no pixel to train on")
    return (weights * pixels.sum() / (weights * pixels).sum()).float()
