"""Labels of photos, in a form that does not depend on the annotation tool, and what readers and writers share.

Each tool's `read` returns `Labels`. All `write` have one signature. They take photos with masks, the names of the
classes, the id of the class that stays unpainted (or None), and the RGB colours of the classes. They yield (name of a
file below the output folder, its content). All pixels of a class in a photo are one region.
"""

import math
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks

from petseg.config.base import MAX_PIXELS
from petseg.data.labels import IGNORE_ID
from petseg.errors import InputError

IGNORED = ""
"""Name of regions whose pixels are to be ignored."""

BEHIND = -(10**9)
"""Layer of regions that all others cover."""


@dataclass(frozen=True)
class Region:
    """One labelled object: the union of its polygons, or a mask."""

    name: str
    """Name of its class, or `IGNORED`."""
    polygons: tuple[np.ndarray, ...] = ()
    """Corners (x, y) in the pixels of the labels: float64 (n, 2), with n of at least 3."""
    rle: Any = None
    """Mask at the size of the labels in run-length encoding, as pycocotools has it; None if there are polygons."""
    layer: int = 0
    """Regions of a higher layer are drawn later."""


@dataclass(frozen=True)
class PhotoLabels:
    """All labels of one photo."""

    photo: str
    """Path of the photo as the tool has it: absolute, relative, or only the file's name."""
    size_hw: tuple[int, int] | None
    """Height and width of the photo in the tool; None if coordinates are fractions of them."""
    regions: tuple[Region, ...]
    source: str
    """File and entry that the labels come from, for messages."""


@dataclass(frozen=True)
class Labels:
    """All labels of a set of photos."""

    photos: list[PhotoLabels]
    names: tuple[str, ...]
    """Names of the classes, in the tool's order."""
    colours: Mapping[str, tuple[int, int, int]] = field(default_factory=dict[str, tuple[int, int, int]])
    """RGB colours of classes, if the tool has them."""
    skipped: Counter[str] = field(default_factory=Counter[str])
    """Counts of labels that are not drawn as objects, by reason."""


@dataclass(frozen=True)
class MaskedPhoto:
    """A photo and its mask, which a writer turns into labels that a person corrects in a tool."""

    photo: str
    """Path of the photo as the tool will have it, with "/" between folders, such as "cats/tom.jpg"."""
    class_ids: np.ndarray
    """Mask of the upright photo: uint8 (H, W), in which 255 is ignored."""


def painted_classes(
    class_ids: np.ndarray, names: Sequence[str], unlabelled: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (class id, its pixels as bool (H, W)) for each class that a mask has, except `unlabelled`.

    Ignored pixels belong to no class.
    """
    present = np.flatnonzero(np.bincount(class_ids.ravel(), minlength=IGNORE_ID + 1)[:IGNORE_ID]).tolist()
    assert not present or present[-1] < len(names), f"class {present[-1]} of {len(names)}"
    for class_id in present:
        if class_id != unlabelled:
            yield class_id, class_ids == class_id


def mask_region(name: str, mask: np.ndarray, layer: int = 0) -> Region:
    """Return a region that is a mask, bool (H, W)."""
    return Region(name, rle=coco_masks.encode(np.asfortranarray(mask, np.uint8)), layer=layer)


def outline_regions(name: str, corners: np.ndarray, skipped: Counter[str], layer: int = 0) -> list[Region]:
    """Return the region of one polygon, or none if it has fewer than three corners; then it is counted."""
    if len(corners) < 3:
        skipped["polygons with fewer than three corners: left out"] += 1
        return []
    return [Region(name, (corners,), layer=layer)]


def box_regions(corners: np.ndarray, skipped: Counter[str]) -> list[Region]:
    """Return a region to ignore for an object of which only the box is known, and count it."""
    skipped["boxes without an outline: their pixels are ignored"] += 1
    return [Region(IGNORED, (corners,), layer=BEHIND)]


def rle_of(shape: Any, size_hw: tuple[int, int]) -> Any:
    """Return pycocotools' run-length encoding of a list of polygons (a list), or of lengths of runs."""
    from_objects: Any = coco_masks.frPyObjects  # its stubs lack these kinds of arguments
    return from_objects(shape, *size_hw)


def polygon(values: Iterable[Any], source: str) -> np.ndarray:
    """Return the corners of a polygon, float64 (n, 2), from a flat list x, y, x, y, … or from pairs.

    Raises `InputError`, naming `source`, if they are not pairs of finite numbers.
    """
    try:
        corners = np.asarray(list(values), np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{source}: a polygon is not a list of pairs of numbers; export the labels again") from error
    if not np.isfinite(corners).all():
        raise InputError(f"{source}: a polygon has a coordinate that is not finite; export the labels again")
    return corners


def rectangle(left: float, top: float, right: float, bottom: float, degrees: float = 0.0) -> np.ndarray:
    """Return the corners of a rectangle that is turned clockwise about its centre."""
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    return turned(corners, ((left + right) / 2, (top + bottom) / 2), degrees)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> np.ndarray:
    """Return the corners of a polygon that is less than 0.1 pixels from an ellipse of up to 2000 pixels."""
    angles = np.linspace(0, 2 * math.pi, 360, endpoint=False)
    corners = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], 1)
    return turned(corners, (x, y), degrees)


def turned(corners: np.ndarray, centre: tuple[float, float], degrees: float) -> np.ndarray:
    """Return corners (n, 2) turned clockwise, as seen in a photo, about a point."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    return (corners - centre) @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(centre)


def entry(values: Any, keys: Iterable[str], source: str) -> list[Any]:
    """Return the values of these keys of an entry.

    Raises `InputError`, naming `source` and the key, if one is missing.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected an object, got {type(values).__name__}; export the labels again")
    for key in keys:
        if key not in values:
            raise InputError(f"{source}: {key} is missing; export the labels again")
    return [values[key] for key in keys]


def listed(values: Any, name: str, source: str) -> list[Any]:
    """Return a list of entries. Raises `InputError`, naming `source`, if it is not a list."""
    if not isinstance(values, list):
        raise InputError(f"{source}: its {name} must be a list; export the labels again")
    return values


def size_of(height: Any, width: Any, source: str) -> tuple[int, int]:
    """Return (height, width) of a photo.

    Raises `InputError`, naming `source`, if they are not whole numbers above 0.
    """
    try:
        size_hw = int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        size_hw = (0, 0)
    if min(size_hw) < 1 or size_hw[0] * size_hw[1] > MAX_PIXELS:  # masks of this size are made
        shown = f"{reprlib.repr(width)} × {reprlib.repr(height)}"
        raise InputError(f"{source}: {shown} is not the size of a photo of at most {MAX_PIXELS:,} pixels; correct it")
    return size_hw


def class_name(value: Any, source: str) -> str:
    """Return the name of a class. Raises `InputError`, naming `source`, if it is not a text of one line."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        shown = reprlib.repr(value)  # short: an alias in YAML may stand for lists of lists of lists …
        raise InputError(f"{source}: {shown} is not the name of a class; name it in the tool, and export again")
    return value.strip()
