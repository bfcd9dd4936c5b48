"""The predictor: decoded photos in, masks at the original size out. No Ray and no files, so that it runs bare."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from petseg import precision
from petseg.config import Precision
from petseg.images import Photo
from petseg.unet import UNet

STRIP_VALUES = 3 * 2**20
"""Logits at the original size that are worked on at a time: what keeps the memory for a large photo small."""


@dataclass(frozen=True)
class Mask:
    """What the network says of one photo."""

    class_ids: np.ndarray
    """uint8 (H, W) at the photo's original, upright size."""

    class_pixels: list[int]
    """Pixels of each class."""

    confidence: float
    """Mean over the pixels of the probability of the class that won."""


class Predictor:
    """A network on a device, with the number of photos it takes at a time."""

    def __init__(self, model: UNet, device: torch.device, batch_size: int, arithmetic: Precision = "auto") -> None:
        self._model = model.to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        self._device = device
        self._batch_size = batch_size
        self._arithmetic: Precision = precision.resolve(arithmetic, device)

    @torch.inference_mode()
    def __call__(self, photos: list[Photo]) -> Iterator[Mask]:
        """One mask per photo, in order, each when it is asked for: only one at the original size need be held.

        The photos are decoded at the network's size, all the same.
        """
        for start in range(0, len(photos), self._batch_size):
            batch = photos[start : start + self._batch_size]
            pixels = torch.from_numpy(np.stack([photo.pixels for photo in batch])).to(self._device)
            with precision.autocast(self._arithmetic, self._device):
                logits = self._model(pixels.permute(0, 3, 1, 2))
            for photo, logits_chw in zip(batch, logits.float(), strict=True):
                yield restore(logits_chw, photo.height, photo.width)


def restore(logits_chw: Tensor, height: int, width: int) -> Mask:
    """Logits at the network's size to a mask at the original one: upsampled bilinearly (pixel centres aligned, as in
    `F.interpolate(…, align_corners=False)`), then the class of the highest.

    Rows are done in strips, so that of the photo's size there is only the mask.
    """
    num_classes, rows, _ = logits_chw.shape
    class_ids = torch.empty((height, width), dtype=torch.uint8)
    confidence_sum = 0.0
    strip = max(1, STRIP_VALUES // (num_classes * width))
    for top in range(0, height, strip):
        bottom = min(height, top + strip)
        source = ((torch.arange(top, bottom, device=logits_chw.device) + 0.5) * (rows / height) - 0.5).clamp(
            0, rows - 1
        )
        above = source.floor().long()
        below = (above + 1).clamp(max=rows - 1)
        narrow = torch.lerp(logits_chw[:, above], logits_chw[:, below], (source - above)[:, None])
        size = (bottom - top, width)
        logits = F.interpolate(narrow[None], size=size, mode="bilinear", align_corners=False)[0]
        highest, winner = logits.max(0)
        class_ids[top:bottom] = winner.to(torch.uint8)
        confidence_sum += (highest - logits.logsumexp(0)).exp().sum(dtype=torch.float64).item()
    counts = torch.bincount(class_ids.flatten(), minlength=num_classes)
    return Mask(class_ids.numpy(), counts.tolist(), confidence_sum / (height * width))
