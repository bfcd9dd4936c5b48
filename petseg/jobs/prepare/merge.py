"""Merge newly drawn masks into a folder of earlier ones: `petseg prepare masks --merge`."""

import csv
import datetime
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from petseg import files, storage
from petseg.config.base import MAX_PIXELS
from petseg.config.classes import ClassesConfig
from petseg.data.classes import read_classes
from petseg.data.decode import max_bytes
from petseg.data.image_file import DecodeError, open_image
from petseg.data.photo_table import read_table
from petseg.errors import InputError

_HEADS = ("time", "id", "change", "pixels")


@dataclass(frozen=True)
class EarlierMasks:
    """A folder of masks that `petseg prepare masks` has drawn before."""

    folder: str
    classes: ClassesConfig
    image_of: Mapping[str, str]
    """Location of the photo of each mask, by id."""


def read_earlier(folder: str) -> EarlierMasks:
    """Return what is in the output of an earlier start. Raises `InputError` if it is not such an output."""
    names = storage.list_names(folder)
    classes = read_classes(folder) if files.CLASSES in names else None
    if classes is None or files.PHOTOS not in names:
        raise InputError(
            f"--output {folder}: there are no masks of petseg prepare masks to merge with; leave out --merge, or give "
            "their folder"
        )
    table = read_table(storage.join(folder, files.PHOTOS), "--images")
    return EarlierMasks(folder, classes, dict(zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True)))


def require_known(earlier: EarlierMasks, labels: str, names: tuple[str, ...], unlabelled: str) -> None:
    """Raise `InputError` if the labels, or `unlabelled`, have a class that the earlier masks lack.

    `names` are the classes of the labels in the file or folder `labels`.
    """
    known = earlier.classes.classes
    where = storage.join(earlier.folder, files.CLASSES)
    if unlabelled not in ("", "ignore", *known):
        raise InputError(f"--unlabelled {unlabelled}: not one of the classes in {where}: {', '.join(known)}")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"--labels {labels}: {where} has no class {', '.join(unknown)}; rename it in the tool, or draw the "
            "labels of all photos into another folder"
        )


def find_changes(earlier: EarlierMasks, masks: Mapping[str, bytes]) -> dict[str, tuple[str, float]]:
    """Return {id: (change, fraction of the pixels that differ)} of the given masks, PNGs by id.

    The change is "added", "changed" or "unchanged". A mask that cannot be read, or that has another size, has changed
    as a whole.
    """
    before = [row_id for row_id in masks if row_id in earlier.image_of]
    locations = (storage.join(earlier.folder, f"{row_id}.png") for row_id in before)
    changes = {row_id: ("added", 1.0) for row_id in masks}
    for row_id, content in zip(before, storage.read_each(locations, max_bytes(MAX_PIXELS)), strict=True):
        differing = 1.0 if isinstance(content, OSError) else _differing(content, masks[row_id])
        changes[row_id] = ("changed" if differing else "unchanged", differing)
    return changes


def write_changes(earlier: EarlierMasks, changes: Mapping[str, tuple[str, float]]) -> None:
    """Add the masks that are added or changed to the table of changes, with the time of this merge.

    It is written before the masks. So if the job is killed and started again, the table still has all of them.
    """
    location = storage.join(earlier.folder, files.CHANGES)
    try:
        text = storage.read(location).decode()
    except FileNotFoundError:
        text = ",".join(_HEADS) + "\n"
    table = io.StringIO()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = [(now, row_id, change, f"{pixels:.4f}") for row_id, (change, pixels) in changes.items()]
    csv.writer(table, lineterminator="\n").writerows(row for row in rows if row[2] != "unchanged")
    if table.getvalue():
        storage.write(location, (text + table.getvalue()).encode())


def summary(changes: Mapping[str, tuple[str, float]]) -> str:
    """Return the numbers of masks by change, such as "12 added, 3 changed"."""
    counts = Counter(change for change, _ in changes.values())
    return ", ".join(f"{counts[change]} {change}" for change in ("added", "changed", "unchanged"))


def _differing(before: bytes, after: bytes) -> float:
    """Return the fraction of pixels in which two masks differ."""
    try:
        old, new = (np.asarray(_load(content)) for content in (before, after))
    except DecodeError:
        return 1.0
    return float((old != new).mean()) if old.shape == new.shape else 1.0


def _load(content: bytes) -> Image.Image:
    opened = open_image(content, MAX_PIXELS)
    opened.load()
    return opened.image
