"""labelme's files: one JSON file per photo. https://github.com/wkentaro/labelme"""

import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from petseg import storage
from petseg.data.annotations.labels import (
    Labels,
    MaskedPhoto,
    PhotoLabels,
    Region,
    class_name,
    ellipse,
    entry,
    listed,
    mask_region,
    outline_regions,
    painted_classes,
    polygon,
    rectangle,
    size_of,
)
from petseg.data.encode import encode_grey
from petseg.data.image_file import open_image
from petseg.errors import InputError

_VERSION = "5.8.0"
"""Version of labelme whose format is written. Later versions read it, too."""

_WITHOUT_AREA = ("line", "linestrip", "point", "points")


def read(location: str) -> Labels:
    """Return the labels of a folder. Raises `InputError`, naming the file, if one is invalid."""
    names = sorted(name for name in storage.list_files(location) if name.lower().endswith(".json"))
    if not names:
        raise InputError(f"--labels {location}: no .json file in it; give the folder that labelme saves in")
    skipped: Counter[str] = Counter()
    photos = [_read_file(storage.join(location, name), name, skipped) for name in names]
    classes = sorted({region.name for photo in photos for region in photo.regions})
    return Labels(photos, tuple(classes), skipped=skipped)


def _read_file(location: str, name: str, skipped: Counter[str]) -> PhotoLabels:
    shapes, height, width = entry(storage.read_json(location), ("shapes", "imageHeight", "imageWidth"), location)
    size_hw = size_of(height, width, location)
    regions = []
    for number, shape in enumerate(listed(shapes, "shapes", location)):
        source = f"{location}, shape {number}"
        label, points = entry(shape, ("label", "points"), source)
        regions += _region(shape, class_name(label, source), polygon(points, source), size_hw, skipped, source)
    # The file has the name of its photo, whose path in the file may be that of another machine.
    return PhotoLabels(name, size_hw, tuple(regions), location)


def _region(
    shape: dict[str, Any],
    name: str,
    points: np.ndarray,
    size_hw: tuple[int, int],
    skipped: Counter[str],
    source: str,
) -> list[Region]:
    kind = shape.get("shape_type") or "polygon"
    if kind in _WITHOUT_AREA:
        skipped["lines and points, which have no area: left out"] += 1
        return []
    if kind in ("polygon", "oriented_rectangle"):
        return outline_regions(name, points, skipped)
    if kind in ("rectangle", "mask", "circle") and len(points) >= 2:
        (x, y), (other_x, other_y) = points[:2].tolist()
        if kind == "circle":  # its centre, and a point on it
            radius = math.hypot(other_x - x, other_y - y)
            return [Region(name, (ellipse(x, y, radius, radius),))]
        if kind == "rectangle":
            corners = points if len(points) == 4 else rectangle(x, y, other_x, other_y)
            return [Region(name, (corners,))]
        return [mask_region(name, _brush(shape.get("mask"), (int(y), int(x)), size_hw, source))]
    raise InputError(f"{source}: petseg cannot draw a shape {kind!r} of {len(points)} points; draw it as a polygon")


def _brush(content: Any, start: tuple[int, int], size_hw: tuple[int, int], source: str) -> np.ndarray:
    """Return a brushed mask, a PNG in base64 of its box that begins at `start`, as bool (H, W)."""
    try:
        opened = open_image(base64.b64decode(content, validate=True), size_hw[0] * size_hw[1])
        opened.load()
    except (TypeError, ValueError, binascii.Error) as error:  # a DecodeError is a ValueError
        raise InputError(f"{source}: its mask is not a picture; save it again in labelme") from error
    box = np.asarray(opened.image.convert("L")) > 0
    whole = np.zeros(size_hw, bool)
    top, left = max(0, start[0]), max(0, start[1])
    inside = whole[top : top + box.shape[0], left : left + box.shape[1]]
    inside[:] = box[: inside.shape[0], : inside.shape[1]]
    return whole


def write(
    photos: Iterable[MaskedPhoto],
    names: Sequence[str],
    unlabelled: int | None,
    palette: Sequence[tuple[int, int, int]] = (),
) -> Iterator[tuple[str, bytes]]:
    """Yield a file for each photo, which belongs beside it. The format has no colours, so `palette` is not used."""
    for photo in photos:
        path = PurePosixPath(photo.photo)
        height, width = photo.class_ids.shape
        shapes = [_shape(names[i], inside) for i, inside in painted_classes(photo.class_ids, names, unlabelled)]
        content = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": path.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        yield str(path.with_suffix(".json")), json.dumps(content).encode()


def _shape(name: str, inside: np.ndarray) -> dict[str, Any]:
    """Return a brushed shape from its pixels, bool (H, W). The corners of its box are its first and its last pixel."""
    (top, bottom), (left, right) = (np.flatnonzero(inside.any(axis))[[0, -1]].tolist() for axis in (1, 0))
    box = inside[top : bottom + 1, left : right + 1]
    return {
        "label": name,
        "points": [[left, top], [right, bottom]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(encode_grey(box.astype(np.uint8))).decode(),
    }
