"""Label Studio's format JSON: one file with a list of tasks. https://labelstud.io/guide/export"""

import json
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

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
    turned,
)
from petseg.errors import InputError

LOCAL_FILES = "/data/local-files/?d="
"""Address at which Label Studio serves the files below its LOCAL_FILES_DOCUMENT_ROOT, to projects that have a local
storage with their folder. https://labelstud.io/guide/storage#Local-storage
"""

_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""Prefix that Label Studio adds to the name of an uploaded file."""

_BRUSH = "brush"
"""Name of the brush in the labelling configuration, to which the predictions refer."""

_LONGEST_RUN = 2**16
_RUN_BITS = 1 + 2 + 16 + 8

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
    predicted = 0
    for number, task in enumerate(tasks):
        source = f"{location}, task {task.get('id') if isinstance(task, dict) else number}"
        if isinstance(task, dict) and task.get("predictions"):
            predicted += 1
            task = {"annotations": [], **task}  # a file to import, such as `write` gives, has no annotations
        data, annotations = entry(task, ("data", "annotations"), source)
        chosen = _last(annotations, annotator, source)
        if chosen is not None:
            photos.append(_photo(_path(data, source), chosen["result"], source, skipped))
    if not photos and not annotator:
        only = f", only predictions in {predicted} of them" if predicted else ""
        raise InputError(
            f"{location}: no task has a submitted annotation{only}; submit some in Label Studio, and export again"
        )
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


def write(
    photos: Iterable[MaskedPhoto],
    names: Sequence[str],
    unlabelled: int | None,
    palette: Sequence[tuple[int, int, int]] = (),
    address: str = LOCAL_FILES,
) -> Iterator[tuple[str, bytes]]:
    """Yield `label-studio-config.xml`, a project's labelling configuration, and `label-studio.json`, tasks to import.

    Without a palette, Label Studio chooses the colours. The address of a photo is `address` and its path, in percent
    encoding. The masks are predictions: Label Studio shows them, and exports them once a person submits them.
    """
    yield "label-studio-config.xml", _configuration(names, unlabelled, palette)
    tasks = [json.dumps(_task(photo, number, names, unlabelled, address)) for number, photo in enumerate(photos)]
    yield "label-studio.json", f"[{','.join(tasks)}]".encode()


def _configuration(names: Sequence[str], unlabelled: int | None, palette: Sequence[tuple[int, int, int]]) -> bytes:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true", zoomControl="true")
    brush = ElementTree.SubElement(view, "BrushLabels", name=_BRUSH, toName="image")
    for class_id, name in enumerate(names):
        if class_id != unlabelled:
            colour = {"background": f"#{bytes(palette[class_id]).hex()}"} if palette else {}
            ElementTree.SubElement(brush, "Label", {"value": name, **colour})
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode").encode()  # without a declaration: it is pasted as text


def _task(
    photo: MaskedPhoto, number: int, names: Sequence[str], unlabelled: int | None, address: str
) -> dict[str, Any]:
    height, width = photo.class_ids.shape
    results = [
        {
            "id": f"petseg-{number}-{class_id}",
            "type": "brushlabels",
            "from_name": _BRUSH,
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": _encode_brush(inside), "brushlabels": [names[class_id]]},
        }
        for class_id, inside in painted_classes(photo.class_ids, names, unlabelled)
    ]
    return {
        "data": {"image": address + urllib.parse.quote(photo.photo)},
        "predictions": [{"model_version": "petseg", "result": results}],
    }


def _encode_brush(inside: np.ndarray) -> list[int]:
    """Return the bytes that `_brush` reads, for a mask, bool (H, W).

    All four channels of a pixel are 255 or 0, so that a run of pixels is a run of values. Each length takes 16 bits.
    Shorter ones would save little: a mask has few short runs.
    """
    pixels = inside.ravel()
    starts = np.concatenate(([0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1))
    lengths = 4 * np.diff(starts, append=pixels.size)
    parts = -(-lengths // _LONGEST_RUN)  # a longer run is cut into several
    last = np.cumsum(parts) - 1
    run = np.full(parts.sum(), _LONGEST_RUN)
    run[last] = lengths - (parts - 1) * _LONGEST_RUN
    value = np.repeat(255 * pixels[starts].astype(np.int64), parts)
    # 1 (it repeats), 3 (the fourth number of bits: 16), the length minus 1, and the value
    codes = (0b111 << 24) | (run - 1) << 8 | value
    bits = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)[:, -_RUN_BITS:]
    header = f"{4 * pixels.size:032b}{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    return np.packbits(np.concatenate((np.array([*map(int, header)], np.uint8), bits.ravel()))).tolist()
