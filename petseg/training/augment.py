"""Augment pairs at random, photo and mask together, on any device. Tensors in, tensors out.

Each pair is flipped and recoloured, and all or some are rotated, zoomed, stretched and shifted, with random numbers of
their own, drawn uniformly from the ranges below. The area outside a photo is filled with its mirror image, and the
mask's area likewise, so that every pixel keeps its true class.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ZOOM = (0.8, 1.4)
"""Range of the zoom factor. Below 1, the mirrored area around the photo becomes visible."""

STRETCH = 0.15
"""Maximum natural logarithm of the change of the ratio of width to height."""

TURN_DEGREES = 15.0
"""Maximum rotation in degrees, in either direction."""

SHIFT = 0.1
"""Maximum shift as a fraction of half the side; larger when zoom crops more."""

COLOUR = 0.3
"""Maximum relative change of brightness, contrast and saturation. Each channel's tint changes by at most a third."""

_DRAWS = 13


def augment(
    photos: Tensor, masks: Tensor, generator: torch.Generator, warp_fraction: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return augmented copies of `photos`, uint8 (n, 3, H, W), and `masks`, uint8 (n, H, W).

    `warp_fraction` is the probability that a pair is rotated, zoomed, stretched and shifted. Otherwise it is only
    mirrored, and keeps its sharp pixels, as those of validation are. Each pair is recoloured.

    The returned photos are float32 in 0..255. The returned masks are uint8 and contain no new values.

    `generator` must be on the tensors' device. Its state determines all random numbers.
    """
    draws = torch.rand(_DRAWS, len(photos), generator=generator, device=photos.device) * 2 - 1
    mirrored = torch.zeros(len(photos), 2, 3, device=photos.device)
    mirrored[:, 0, 0], mirrored[:, 1, 1] = _flip(draws), 1
    matrices = torch.where((draws[12] < 2 * warp_fraction - 1)[:, None, None], _affine(draws), mirrored)
    grid = F.affine_grid(matrices, list(photos.shape), align_corners=False)
    sampled = F.grid_sample(photos.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    ids = F.grid_sample(masks[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)
    recoloured = _recolour(sampled, draws[6:12]).contiguous(memory_format=torch.channels_last)
    return recoloured, ids[:, 0].to(torch.uint8)


def _affine(draws: Tensor) -> Tensor:
    """Return matrices (n, 2, 3) for `F.affine_grid`, from (>= 6, n) draws in -1..1.

    They map each pixel of the result to its position in the photo.
    """
    low, high = (math.log(limit) for limit in ZOOM)
    zoom = torch.exp((high + low) / 2 + draws[0] * (high - low) / 2)
    stretch = torch.exp(draws[1] * STRETCH / 2)
    scale_x, scale_y = 1 / (zoom * stretch), stretch / zoom
    angle = draws[2] * math.radians(TURN_DEGREES)
    flip = _flip(draws)
    shift_x, shift_y = (
        draw * (1 - scale).abs().clamp(min=SHIFT) for draw, scale in ((draws[4], scale_x), (draws[5], scale_y))
    )
    cos, sin = angle.cos(), angle.sin()
    rows = [[scale_x * flip * cos, -scale_y * sin, shift_x], [scale_x * flip * sin, scale_y * cos, shift_y]]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _flip(draws: Tensor) -> Tensor:
    """Return -1 for the pairs that are mirrored, and 1 for the others: (n,)."""
    return torch.where(draws[3] < 0, -1.0, 1.0)


def _recolour(photos: Tensor, draws: Tensor) -> Tensor:
    """Scale brightness, contrast, saturation and tint at random, and clamp the result to 0..255."""
    factors = (1 + COLOUR * draws[:3])[..., None, None, None]
    tint = (1 + COLOUR / 3 * draws[3:6].T)[..., None, None]
    bright = photos * factors[0]
    mean = bright.mean((1, 2, 3), keepdim=True)
    contrasted = (bright - mean) * factors[1] + mean
    grey = contrasted.mean(1, keepdim=True)
    return (((contrasted - grey) * factors[2] + grey) * tint).clamp(0, 255)
