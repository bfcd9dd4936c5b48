"""Enlarge class probabilities to a photo's size, and compute what masks and scores need from them. No network."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

STRIP_VALUES = 3 * 2**20
"""Number of probabilities at the original size to process at a time. It bounds the memory for a large photo."""

MARGIN = 0.5
"""Difference of the two highest probabilities below which a pixel is unsure.

It was chosen on held-out photos of pets: with it, the order of the photos is closest to that of their mIoU.
"""


def most_probable(probabilities_chw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest probability at each pixel and its class id, uint8 (H, W); the first class wins a tie."""
    highest, class_ids = probabilities_chw[0], torch.zeros_like(probabilities_chw[0], dtype=torch.uint8)
    for class_id in range(1, len(probabilities_chw)):  # several times faster than max(0), whose indices are int64
        of_class = probabilities_chw[class_id]
        class_ids = torch.maximum(class_ids, (of_class > highest).to(torch.uint8) * class_id)
        highest = torch.maximum(highest, of_class)
    return highest, class_ids


def enlarge(values_chw: Tensor, height: int, width: int) -> Iterator[tuple[int, Tensor]]:
    """Resize values (C, h, w) bilinearly, as `F.interpolate(…, align_corners=False)` does.

    Yields (number of the strip's first row, strip of rows).
    """
    num_classes, rows, columns = values_chw.shape
    if (rows, columns) == (height, width):
        yield 0, values_chw
        return
    # Transpose, so that columns are gathered as whole rows.
    below, above, weight = _taps(columns, width, values_chw.device)
    transposed = values_chw.transpose(1, 2).contiguous()
    transposed = torch.lerp(transposed.index_select(1, below), transposed.index_select(1, above), weight[:, None])
    wide = transposed.transpose(1, 2).contiguous()
    below, above, weight = _taps(rows, height, values_chw.device)
    strip = strip_rows(num_classes, width)
    for top in range(0, height, strip):
        part = slice(top, top + strip)
        yield top, torch.lerp(wide.index_select(1, below[part]), wide.index_select(1, above[part]), weight[part, None])


def strip_rows(num_classes: int, width: int) -> int:
    """Return the number of rows to process at a time."""
    return max(1, STRIP_VALUES // (num_classes * width))


def _taps(length_in: int, length_out: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each output index, its two neighbours in the source and the weight of the second."""
    centers = ((torch.arange(length_out, device=device) + 0.5) * (length_in / length_out) - 0.5).clamp(0, length_in - 1)
    first = centers.floor().long()
    return first, (first + 1).clamp(max=length_in - 1), centers - first


@torch.inference_mode()
def unsure_fraction(probabilities_chw: Tensor) -> float:
    """Return the fraction of pixels whose two most probable classes are close, of those that are on no outline.

    A pixel is on an outline if one of its eight neighbours has another class. The outlines of a good mask are unsure,
    too. `probabilities_chw` is float (C, H, W). The result is 1 if all pixels
    are on an outline, as in noise.
    """
    highest, class_ids = most_probable(probabilities_chw)
    second = torch.zeros_like(highest)
    for class_id, of_class in enumerate(probabilities_chw):  # several times faster than topk
        second = torch.maximum(second, torch.where(class_ids == class_id, 0, of_class))
    inside = _neighbours(class_ids, torch.maximum) == _neighbours(class_ids, torch.minimum)
    unsure = inside & (highest - second < MARGIN)
    return (unsure.sum() / inside.sum()).item() if inside.any() else 1.0


def _neighbours(class_ids: Tensor, reduce: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Reduce each value with its eight neighbours: (H, W). For uint8, it takes a fifth of the time of a pooling."""
    for axis, side in enumerate(class_ids.shape):
        before, after = class_ids.narrow(axis, 0, side - 1), class_ids.narrow(axis, 1, side - 1)
        reduced = class_ids.clone()
        reduced.narrow(axis, 1, side - 1).copy_(reduce(before, after))
        front = reduced.narrow(axis, 0, side - 1)
        front.copy_(reduce(front, after))
        class_ids = reduced
    return class_ids
