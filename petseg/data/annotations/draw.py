"""Draw the labels of a photo as a mask of class ids."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from petseg.data.annotations.labels import IGNORED, PhotoLabels, Region, rle_of
from petseg.data.image_file import Header, upright
from petseg.data.labels import IGNORE_ID
from petseg.errors import InputError

Order = Literal["file", "area", "classes"]

_REACH = 10
"""Largest distance of an outline from the photo, in sides of the photo. pycocotools crashes on coordinates far outside,
because it computes with integers of 32 bits.
"""


def draw(labels: PhotoLabels, photo: Header, ids: Mapping[str, int], unlabelled: int, order: Order) -> np.ndarray:
    """Return the mask of a photo, upright: uint8 (H, W) of class ids, with `unlabelled` where no region is.

    Later regions are drawn over earlier ones. Their order is that of the file; with "area", small ones come after large
    ones; with "classes", those of a higher class id after those of a lower one. Regions whose name is not in `ids` are
    left out. Coordinates are scaled if the labels have another size than the photo.

    Raises `InputError` if the shape of the labels' photo is another one, or if a polygon lies outside the photo.
    """
    turn = _is_as_stored(labels, photo)
    width, height = photo.stored_size if turn else photo.size
    mask = np.full((height, width), unlabelled, np.uint8)
    drawn = []
    for region in sorted(labels.regions, key=lambda region: region.layer):
        if region.name == IGNORED or region.name in ids:
            class_id = IGNORE_ID if region.name == IGNORED else ids[region.name]
            drawn.append((class_id, *_encoded(region, labels, (height, width))))
    if order == "area":
        drawn.sort(key=lambda item: -int(coco_masks.area(item[2])))
    elif order == "classes":
        drawn.sort(key=lambda item: item[0])
    for class_id, (top, left), rle in drawn:  # decoded one at a time: a photo may have hundreds
        inside = coco_masks.decode(rle).astype(bool)
        mask[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = class_id
    return np.asarray(upright(Image.fromarray(mask), photo.orientation)) if turn else mask


def _is_as_stored(labels: PhotoLabels, photo: Header) -> bool:
    """Return True if the labels were drawn on the photo as it is stored, which EXIF turns.

    Tools show photos upright, so this is so only if the size of the labels says it: the same size, or the same shape.
    """
    if labels.size_hw is None:
        return False
    height, width = labels.size_hw
    if _has_shape(photo.size, width, height):
        return False
    if _has_shape(photo.stored_size, width, height):
        return True
    raise InputError(
        f"{labels.source}: its labels are for a photo of {width} × {height}, but {labels.photo} has {photo.size[0]} × "
        f"{photo.size[1]}; export the labels for this photo"
    )


def _has_shape(size: tuple[int, int], width: int, height: int) -> bool:
    """Return True if one size is the other, scaled and rounded: a side of the smaller one may differ by a pixel."""
    small, large = sorted([size, (width, height)])
    across, down = small[0] / large[0], small[1] / large[1]
    return abs(large[0] * down - small[0]) <= 1 or abs(large[1] * across - small[1]) <= 1


def _encoded(region: Region, labels: PhotoLabels, size_hw: tuple[int, int]) -> tuple[tuple[int, int], Any]:
    """Return a part of the mask, at `size_hw`, that contains a region: (its top and left, its run-length encoding)."""
    height, width = size_hw
    if region.rle is not None:
        if tuple(region.rle["size"]) == size_hw:
            return (0, 0), region.rle
        inside = Image.fromarray(coco_masks.decode(region.rle)).resize((width, height), Image.Resampling.NEAREST)
        return (0, 0), coco_masks.encode(np.asfortranarray(inside))
    high, wide = labels.size_hw or (1, 1)
    polygons = [corners * (width / wide, height / high) for corners in region.polygons]
    every = np.concatenate(polygons)
    size, reach = np.array([width, height]), _REACH * np.array([width, height])
    first, last = every.min(0), every.max(0)
    is_outside = (last < 0).any() or (first > size).any() or (first < -reach).any() or (last > reach).any()
    if is_outside or not np.isfinite(every).all():
        name = region.name or "an object"
        raise InputError(f"{labels.source}: the outline of {name} lies outside the photo; correct it in the tool")
    (first_x, first_y), (last_x, last_y) = first.tolist(), last.tolist()
    left, top = max(0, int(first_x)), max(0, int(first_y))
    part = min(height, int(last_y) + 2) - top, min(width, int(last_x) + 2) - left
    rle = rle_of([(corners - (left, top)).ravel().tolist() for corners in polygons], (max(1, part[0]), max(1, part[1])))
    return (min(top, height - 1), min(left, width - 1)), coco_masks.merge(rle)
