"""Read YOLO segmentation labels: a text file per photo, and data.yaml. https://docs.ultralytics.com/datasets/segment/"""

from collections import Counter
from typing import Any

import yaml

from petseg import storage
from petseg.data.annotations.labels import Labels, PhotoLabels, Region, class_name, polygon
from petseg.errors import InputError

_NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")
_NOT_LABELS = {"classes.txt", "notes.txt", "readme.txt", "train.txt", "val.txt", "test.txt"}


def read(location: str) -> Labels:
    """Return the labels of a folder. Raises `InputError`, naming the file and the line, if they are invalid."""
    names = _names(location)
    files = sorted(
        name
        for name in storage.list_files(location)
        if name.lower().endswith(".txt") and name.rpartition("/")[2].lower() not in _NOT_LABELS
    )
    if not files:
        raise InputError(f"--labels {location}: no .txt file in it; give the folder of the labels")
    left_out: Counter[str] = Counter()
    photos = []
    for name in files:
        place = storage.join(location, name)
        text = storage.read_input(place).decode("utf-8-sig", "replace")
        regions = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                regions += _region(line.split(), names, left_out, f"{place}, line {number}")
        # The photo of labels/train/1.txt is images/train/1.jpg.
        photos.append(PhotoLabels(name.removeprefix("labels/"), None, tuple(regions), place))
    return Labels(photos, tuple(names), left_out=left_out)


def _region(words: list[str], names: list[str], left_out: Counter[str], source: str) -> list[Region]:
    if not words[0].isdecimal() or int(words[0]) >= len(names):
        raise InputError(f"{source}: {words[0]!r} is not the number of one of the {len(names)} classes; see data.yaml")
    if len(words) == 5:
        raise InputError(f"{source}: a box, not a polygon; export the labels for segmentation")
    corners = polygon(words[1:], source)
    if len(corners) < 3:
        left_out["polygons with fewer than three corners"] += 1
        return []
    return [Region(names[int(words[0])], (corners,))]


def _names(location: str) -> list[str]:
    """Return the names of the classes, from a file in the folder or in the one above it."""
    above = location.rstrip("/").rpartition("/")[0]
    for folder in (location, above):
        there = storage.list_names(folder)
        for name in _NAMES_FILES:
            if name in there:
                return _parse_names(storage.join(folder, name))
    raise InputError(f"--labels {location}: no data.yaml in it, nor in the folder above; it names the classes")


def _parse_names(location: str) -> list[str]:
    text = storage.read_input(location).decode("utf-8-sig", "replace")
    if location.endswith(".txt"):
        found: Any = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{location}: not YAML: {' '.join(str(error).split())}; export it again") from error
        found = content.get("names") if isinstance(content, dict) else None
        if isinstance(found, dict):
            if sorted(found) != list(range(len(found))):
                raise InputError(f"{location}: the numbers of its names are not 0, 1, 2, …; number them so")
            found = [found[number] for number in range(len(found))]
    if not isinstance(found, list) or not found:
        raise InputError(f"{location}: it has no list of names; add the names of the classes, in their order")
    # Only a number is made a text: an alias in YAML may stand for a list of lists of lists …
    names = [class_name(str(name) if isinstance(name, int) else name, location) for name in found]
    if len(set(names)) < len(names):
        raise InputError(f"{location}: two classes have one name; give each its own")
    return names
