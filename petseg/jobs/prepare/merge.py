"""Merge newly drawn masks into a folder of earlier ones: `petseg prepare masks --merge`."""

import csv
import datetime
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from petseg import files, storage
from petseg.config.base import MAX_PIXELS
from petseg.config.classes import ClassesConfig
from petseg.data.classes import read_classes
from petseg.data.decode import max_bytes
from petseg.data.image_file import DecodeError, open_image
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.photo_table import read_table
from petseg.errors import InputError
from petseg.jobs.prepare.mask_folder import write_masks, write_photos

_HEADS = b"time,id,change,pixels\n"


@dataclass(frozen=True)
class EarlierMasks:
    """A folder of masks that `petseg prepare masks` has drawn before."""

    folder: str
    classes: ClassesConfig
    image_of: Mapping[str, str]
    """Location of the photo of each mask, by id."""
    ids: frozenset[str]
    """Ids of the masks that are there, also of those that the table does not list."""


def read_earlier(folder: str) -> EarlierMasks:
    """Return what is in the output of an earlier start. Raises `InputError` if it is not such an output."""
    names = storage.list_names(folder)
    classes = read_classes(folder) if files.CLASSES in names else None
    if classes is None or files.PHOTOS not in names:
        raise InputError(
            f"--output {folder}: there are no masks of petseg prepare masks to merge with; leave out --merge, or give "
            "their folder"
        )
    label_map = LabelMap.parse(classes.label_map, len(classes.classes), classes.classes, classes.ignore_label)
    if label_map.ids != {**{class_id: class_id for class_id in range(len(classes.classes))}, IGNORE_ID: IGNORE_ID}:
        raise InputError(
            f"{storage.join(folder, files.CLASSES)}: the values of the masks are not the ids of the classes, 0, 1, 2, "
            "…, and 255; draw the labels into another folder"
        )
    table = read_table(storage.join(folder, files.PHOTOS), "--images")
    image_of = dict(zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True))
    ids = frozenset(name.removesuffix(".png") for name in storage.list_files(folder) if name.endswith(".png"))
    return EarlierMasks(folder, classes, image_of, ids)


def require_known_classes(earlier: EarlierMasks, labels: str, names: tuple[str, ...], unlabelled: str) -> None:
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


def require_same_ids(earlier: EarlierMasks, image_of: Mapping[str, str]) -> None:
    """Raise `InputError` if a photo, given by id, has another id in the earlier table: it would be there twice."""
    id_of = {image: row_id for row_id, image in earlier.image_of.items()}
    for row_id, image in image_of.items():
        if id_of.get(image, row_id) != row_id:
            raise InputError(
                f"--images: {image} has the id {row_id}, but {id_of[image]} in {earlier.folder}; give the folder or "
                "table of photos that the earlier masks were drawn with"
            )


def merge_masks(earlier: EarlierMasks, masks: Mapping[str, bytes], image_of: Mapping[str, str]) -> Counter[str]:
    """Write the masks, PNGs by id, that the folder lacks or that differ. Return the number of masks by change.

    The table of changes is written first, so it lists all of them even if the job is killed; then a second start may
    list some again. Raises `OSError` or `UnavailableError` if a file cannot be written.
    """
    changes = _find_changes(earlier, masks)
    new = {row_id: content for row_id, content in masks.items() if changes[row_id][0] != "unchanged"}
    _add_changes(earlier.folder, {row_id: changes[row_id] for row_id in new})
    write_masks(earlier.folder, new)
    listed = {
        row_id: image_of.get(row_id, image) for row_id, image in earlier.image_of.items() if row_id in earlier.ids
    }
    listed |= {row_id: image_of[row_id] for row_id in masks}
    write_photos(earlier.folder, dict(sorted(listed.items())))
    return Counter(change for change, _ in changes.values())


def _find_changes(earlier: EarlierMasks, masks: Mapping[str, bytes]) -> dict[str, tuple[str, float]]:
    """Return {id: (added, changed or unchanged; fraction of the pixels that differ)} of the given masks."""
    before = [row_id for row_id in masks if row_id in earlier.ids]
    locations = (storage.join(earlier.folder, f"{row_id}.png") for row_id in before)
    changes = {row_id: ("added", 1.0) for row_id in masks}
    for row_id, content in zip(before, storage.read_each(locations, max_bytes(MAX_PIXELS)), strict=True):
        differing = 1.0 if isinstance(content, OSError) else _differing(content, masks[row_id])
        changes[row_id] = ("changed" if differing else "unchanged", differing)
    return changes


def _add_changes(folder: str, changes: Mapping[str, tuple[str, float]]) -> None:
    """Add rows with the time of this merge to the table of changes. What is in it stays, whatever its encoding."""
    location = storage.join(folder, files.CHANGES)
    before = storage.read(location) if files.CHANGES in storage.list_names(folder) else _HEADS
    table = io.StringIO()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = [(now, row_id, change, f"{pixels:.4f}") for row_id, (change, pixels) in changes.items()]
    csv.writer(table, lineterminator="\n").writerows(rows)
    if rows:
        storage.write(location, before + (b"" if before.endswith(b"\n") else b"\n") + table.getvalue().encode())


def _differing(before: bytes, after: bytes) -> float:
    """Return the fraction of pixels in which two masks differ: 1 if one is broken, or of another size or kind."""
    try:
        old, new = (_load(content) for content in (before, after))
    except DecodeError:
        return 1.0
    return float((old != new).mean()) if old.shape == new.shape else 1.0


def _load(content: bytes) -> np.ndarray:
    opened = open_image(content, MAX_PIXELS)
    opened.load()
    return np.asarray(opened.image)
