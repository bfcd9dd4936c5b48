"""Read Label Studio's export in the format JSON: one file with a list of tasks. https://labelstud.io/guide/export"""

import re
import urllib.parse
from collections import Counter
from typing import Any

import numpy as np

from petseg import storage
from petseg.data.annotations.labels import (
    Labels,
    PhotoLabels,
    Region,
    class_name,
    ellipse,
    entry,
    listed,
    mask_region,
    outline_regions,
    polygon,
    rectangle,
    size_of,
    turned,
)
from petseg.errors import InputError

_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""Prefix that Label Studio adds to the name of an uploaded file."""

_KINDS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")
"""Types of results that have an area. Their classes are under a key of the same name."""


def read(location: str, annotator: str = "") -> Labels:
    """Return the labels of a file: of each task, the annotation that was submitted last.

    With `annotator`, an e-mail address or a number, only that person's annotations are used. Raises `InputError`,
    naming the file and the task, if they are invalid.
    """
    tasks = storage.read_json(location)
    if not isinstance(tasks, list):
        raise InputError(f"{location}: not a list of tasks; export the format JSON, not another one")
    skipped: Counter[str] = Counter()
    photos = []
    for number, task in enumerate(tasks):
        source = f"{location}, task {task.get('id') if isinstance(task, dict) else number}"
        data, annotations = entry(task, ("data", "annotations"), source)
        chosen = _last(annotations, annotator, source)
        if chosen is not None:
            photos.append(_photo(_path(data, source), chosen["result"], source, skipped))
    names = sorted({region.name for photo in photos for region in photo.regions})
    return Labels(photos, tuple(names), skipped=skipped)


def _last(annotations: Any, annotator: str, source: str) -> dict[str, Any] | None:
    """Return the annotation that was updated last, of those that were submitted, or None."""
    submitted = []
    for annotation in listed(annotations, "annotations", source):
        entry(annotation, ("result",), source)
        if not annotation.get("was_cancelled") and annotator in ("", *_people(annotation.get("completed_by"))):
            submitted.append(annotation)
    return max(submitted, key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""), default=None)


def _people(completed_by: Any) -> list[str]:
    """Return the names by which --annotator may name who completed an annotation: a number, or an object."""
    if isinstance(completed_by, dict):
        return [str(completed_by[key]) for key in ("id", "email") if key in completed_by]
    return [str(completed_by)]


def _path(data: Any, source: str) -> str:
    """Return the path of a task's photo: the text of the key "image", or the only text."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
    if "image" not in texts and len(texts) != 1:
        raise InputError(f'{source}: its data have no text "image"; name the photo\'s variable so')
    url = texts.get("image", next(iter(texts.values())))
    path = urllib.parse.unquote(url.partition("?d=")[2] or url.partition("?")[0])
    folder, _, name = path.rpartition("/")
    return f"{folder}/{_UPLOAD.sub('', name)}" if "/upload/" in path else path


def _photo(path: str, results: Any, source: str, skipped: Counter[str]) -> PhotoLabels:
    regions, size_hw = [], None
    for result in listed(results, "results", source):
        (kind,) = entry(result, ("type",), source)
        if kind not in _KINDS:
            skipped[f"results of the type {kind}, which petseg does not draw: left out"] += 1
            continue
        value, height, width = entry(result, ("value", "original_height", "original_width"), source)
        size_hw = size_of(height, width, source)
        labels = value.get(kind) if isinstance(value, dict) else None
        if not labels:
            skipped["regions without a class: left out"] += 1
            continue
        if len(listed(labels, "classes", source)) > 1:
            raise InputError(f"{source}: a region has the classes {', '.join(map(str, labels))}; give it one of them")
        regions += _regions(kind, class_name(labels[0], source), value, size_hw, skipped, source)
    return PhotoLabels(path, size_hw, tuple(regions), source)


def _regions(
    kind: str, name: str, value: dict[str, Any], size_hw: tuple[int, int], skipped: Counter[str], source: str
) -> list[Region]:
    height, width = size_hw
    percent = np.array([width, height]) / 100
    if kind == "polygonlabels":
        (points,) = entry(value, ("points",), source)
        return outline_regions(name, polygon(points, source) * percent, skipped)
    if kind == "brushlabels":
        (runs,) = entry(value, ("rle",), source)
        return [mask_region(name, _brush(runs, size_hw, source))]
    sides = ("radiusX", "radiusY") if kind == "ellipselabels" else ("width", "height")
    (x, y), (across, down) = polygon(entry(value, ("x", "y", *sides), source), source) * percent
    degrees = float(value.get("rotation") or 0)
    if kind == "ellipselabels":
        return [Region(name, (ellipse(x, y, across, down, degrees),))]
    # Label Studio turns a rectangle about its top left corner.
    return [Region(name, (turned(rectangle(x, y, x + across, y + down), (x, y), degrees),))]


def _brush(runs: Any, size_hw: tuple[int, int], source: str) -> np.ndarray:
    """Return a brushed mask as bool (H, W).

    The bytes are a stream of bits: the number of values (32 bits), the bits of a value minus 1 (5), four numbers of
    bits minus 1 (4 each). Then, for each run: whether its value repeats (1 bit), which of the four numbers of bits its
    length has (2), its length minus 1, and its value or values. The values are RGBA, and the alpha is the mask.
    https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack
    """
    try:
        bits = _Bits(bytes(runs))
        total = bits.take(32)
        if total != 4 * size_hw[0] * size_hw[1]:
            raise ValueError
        word = bits.take(5) + 1
        sizes = [bits.take(4) + 1 for _ in range(4)]
        values = np.empty(total, np.uint8)
        start = 0
        while start < total:
            repeats = bits.take(1)
            end = start + bits.take(sizes[bits.take(2)]) + 1
            if end > total:
                raise ValueError
            values[start:end] = bits.take(word) if repeats else [bits.take(word) for _ in range(end - start)]
            start = end
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{source}: a brushed mask does not fit its image; export the labels again") from error
    return values[3::4].reshape(size_hw) > 0


class _Bits:
    """Numbers from a stream of bits, the highest bit first."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = content, 0

    def take(self, count: int) -> int:
        """Return the next `count` bits as a number. Raises `IndexError` at the end."""
        start, end = self._position, self._position + count
        if end > 8 * len(self._content):
            raise IndexError
        self._position = end
        first, last = start // 8, (end + 7) // 8
        whole = int.from_bytes(self._content[first:last], "big")
        return (whole >> (8 * last - end)) & ((1 << count) - 1)
