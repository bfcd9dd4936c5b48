"""Read YOLO segmentation labels: a text file per photo, and data.yaml. https://docs.ultralytics.com/datasets/segment/"""

import re
import reprlib
from collections import Counter
from typing import Any

import yaml

from petseg import storage
from petseg.data.annotations.labels import (
    Labels,
    PhotoLabels,
    Region,
    box_regions,
    class_name,
    outline_regions,
    polygon,
    rectangle,
)
from petseg.errors import InputError

_NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")
_NOT_LABELS = re.compile(r"(classes|notes|train|val|valid|validation|test|readme(\..*)?)\.txt", re.IGNORECASE)
"""Names of lists and texts at the root of a dataset."""

_LEVELS = 3
"""Number of folders, from that of the labels up, in which the names of the classes are looked for."""


def read(location: str) -> Labels:
    """Return the labels of a folder. Raises `InputError`, naming the file and the line, if they are invalid."""
    names = _names(location)
    files = sorted(name for name in storage.list_files(location) if name.lower().endswith(".txt"))
    if any("labels" in name.split("/")[:-1] for name in files):
        files = [name for name in files if "labels" in name.split("/")[:-1]]
    elif set(_NAMES_FILES) & set(storage.list_names(location)):
        files = [name for name in files if not _NOT_LABELS.fullmatch(name)]
    if not files:
        raise InputError(f"--labels {location}: no .txt file in it; give the folder of the labels")
    skipped: Counter[str] = Counter()
    photos = []
    for name in files:
        place = storage.join(location, name)
        text = storage.read_input(place).decode("utf-8-sig", "replace")
        regions = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                regions += _regions(line.split(), names, skipped, f"{place}, line {number}")
        photos.append(PhotoLabels(_photo(name), None, tuple(regions), place))
    return Labels(photos, tuple(names), skipped=skipped)


def _photo(name: str) -> str:
    """Return the path of the photo of a file: that of train/labels/1.txt is train/images/1.jpg."""
    folders = name.split("/")
    for index in range(len(folders) - 2, -1, -1):
        if folders[index] == "labels":
            folders[index] = "images"
            break
    return "/".join(folders)


def _regions(words: list[str], names: list[str], skipped: Counter[str], source: str) -> list[Region]:
    if not re.fullmatch(r"\d{1,6}", words[0]) or int(words[0]) >= len(names):
        shown = reprlib.repr(words[0])
        raise InputError(f"{source}: {shown} is not the number of one of the {len(names)} classes; see data.yaml")
    if len(words) == 5:
        (x, y), (width, height) = polygon(words[1:], source)
        return box_regions(rectangle(x - width / 2, y - height / 2, x + width / 2, y + height / 2), skipped)
    return outline_regions(names[int(words[0])], polygon(words[1:], source), skipped)


def _names(location: str) -> list[str]:
    """Return the names of the classes, from a file in the folder or in one above it."""
    folder = location.rstrip("/")
    for _ in range(_LEVELS):
        there = storage.list_names(folder)
        for name in _NAMES_FILES:
            if name in there:
                return _parse_names(storage.join(folder, name))
        folder = folder.rpartition("/")[0]
    raise InputError(f"--labels {location}: no data.yaml in it, nor in a folder above; it names the classes")


def _parse_names(location: str) -> list[str]:
    text = storage.read_input(location).decode("utf-8-sig", "replace")
    if location.endswith(".txt"):
        found: Any = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{location}: not YAML: {reason}; export it again") from error
        found = content.get("names") if isinstance(content, dict) else None
        if isinstance(found, dict):
            if set(found) != set(range(len(found))):
                raise InputError(f"{location}: the numbers of its names are not 0, 1, 2, …; number them so")
            found = [found[number] for number in range(len(found))]
    if not isinstance(found, list) or not found:
        raise InputError(f"{location}: it has no list of names; add the names of the classes, in their order")
    names = [class_name(str(name) if type(name) is int else name, location) for name in found]
    if len(set(names)) < len(names):
        raise InputError(f"{location}: two classes have one name; give each its own")
    return names
