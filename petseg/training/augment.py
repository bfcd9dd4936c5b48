"""Pairs changed at random, photo and mask together, on whatever device they are: tensors in, tensors out.

Each pair is flipped, turned, zoomed, stretched, shifted and recoloured by numbers of its own, drawn uniformly from the
ranges below. What was outside the photo is filled by its mirror image, and the mask's likewise, so that every pixel
keeps its truth.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ZOOM = (0.8, 1.4)
"""Factors by which what is seen grows; below 1, the mirror images come into sight."""

STRETCH = 0.15
"""Largest natural logarithm of the ratio of width to height."""

TURN_DEGREES = 15.0

SHIFT = 0.1
"""Share of half a side by which the centre may move at least; as much as zooming has cut off, where that is more."""

COLOUR = 0.3
"""Most by which brightness, contrast and saturation are multiplied more or less; a third of it for each channel."""

_DRAWS = 12


def augment(photos: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Changed copies: photos uint8 (n, 3, H, W) as float32 in 0..255, masks uint8 (n, H, W) with no new value in them.

    `generator` is on the tensors' device, and all that is random follows from its state.
    """
    draws = torch.rand(_DRAWS, len(photos), generator=generator, device=photos.device) * 2 - 1
    grid = F.affine_grid(_affine(draws), list(photos.shape), align_corners=False)
    moved = F.grid_sample(photos.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    ids = F.grid_sample(masks[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)
    recoloured = _recolour(moved, draws[6:]).contiguous(memory_format=torch.channels_last)
    return recoloured, ids[:, 0].to(torch.uint8)


def _affine(draws: Tensor) -> Tensor:
    """(n, 2, 3), as `F.affine_grid` takes it, from (>= 6, n) draws in -1..1: where in the photo each pixel is found."""
    low, high = (math.log(limit) for limit in ZOOM)
    zoom = torch.exp((high + low) / 2 + draws[0] * (high - low) / 2)
    stretch = torch.exp(draws[1] * STRETCH / 2)
    scale_x, scale_y = 1 / (zoom * stretch), stretch / zoom
    angle = draws[2] * math.radians(TURN_DEGREES)
    flip = torch.where(draws[3] < 0, -1.0, 1.0)
    shift_x, shift_y = (
        draw * (1 - scale).abs().clamp(min=SHIFT) for draw, scale in ((draws[4], scale_x), (draws[5], scale_y))
    )
    cos, sin = angle.cos(), angle.sin()
    rows = [[scale_x * flip * cos, -scale_y * sin, shift_x], [scale_x * flip * sin, scale_y * cos, shift_y]]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _recolour(photos: Tensor, draws: Tensor) -> Tensor:
    """Brightness, contrast, saturation and tint, each multiplied, within 0..255."""
    factors = (1 + COLOUR * draws[:3])[..., None, None, None]
    tint = (1 + COLOUR / 3 * draws[3:6].T)[..., None, None]
    bright = photos * factors[0]
    mean = bright.mean((1, 2, 3), keepdim=True)
    contrasted = (bright - mean) * factors[1] + mean
    grey = contrasted.mean(1, keepdim=True)
    return (((contrasted - grey) * factors[2] + grey) * tint).clamp(0, 255)
