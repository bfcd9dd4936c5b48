"""Loss functions and class weights. Tensors only."""

import torch
import torch.nn.functional as F
from torch import Tensor

from petseg.data.labels import IGNORE_ID
from petseg.errors import InputError


def cross_entropy_sum(logits_nchw: Tensor, target_nhw: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy in nats, summed in fp32 over the pixels that are not ignored.

    The target is uint8 (N, H, W). With `class_weights`, float32 (C,), each pixel is weighted by its true class.
    """
    return F.cross_entropy(
        logits_nchw.float(), target_nhw.long(), class_weights, ignore_index=IGNORE_ID, reduction="sum"
    )


def dice_loss(logits_nchw: Tensor, target_nhw: Tensor) -> Tensor:
    """Return 1 - the soft Dice coefficient (Milletari et al., 2016), averaged over the classes that occur.

    The Dice coefficient of a class is 2 Σ p·t / (Σ p + Σ t) over the pixels that are not ignored, where p is its
    probability, and t is 1 where it is the true class, else 0.
    """
    probabilities = logits_nchw.float().softmax(1)
    counted = target_nhw != IGNORE_ID
    losses, occurring = [], []
    for class_id in range(logits_nchw.shape[1]):
        of_class, is_class = probabilities[:, class_id], target_nhw == class_id
        count = is_class.sum()
        losses.append(1 - 2 * (of_class * is_class).sum() / ((of_class * counted).sum() + count).clamp(min=1e-6))
        occurring.append(count > 0)
    occurs = torch.stack(occurring)
    return (torch.stack(losses) * occurs).sum() / occurs.sum().clamp(min=1)


def total_weight(target_nhw: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the divisor for `cross_entropy_sum`: the number of pixels that are not ignored, or their total weight."""
    counted = target_nhw != IGNORE_ID
    if class_weights is None:
        return counted.sum().float()
    return (class_weights[torch.where(counted, target_nhw, 0).long()] * counted).sum()


def class_weights(text: str, class_pixels: tuple[int, ...]) -> Tensor | None:
    """Return the weights of --class-weights: float32 (C,), with mean 1 over the pixels; None if `text` is empty.

    "balanced" is n / (C · n_c), as in scikit-learn: each class contributes equally to the loss.

    Raises `InputError` if the value is neither "balanced" nor one number of 0 or more per class, if a class to be
    balanced has no pixel, or if no class with a weight has a pixel.
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
