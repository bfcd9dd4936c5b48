"""Classes of a set of masks: from the flags, or from the `classes.json` in the folder of the masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from petseg import files, storage
from petseg.config.base import MAX_PIXELS, from_json, to_json
from petseg.config.classes import ClassesConfig
from petseg.data import labels
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.mask_values import first_value, scan_masks
from petseg.data.photo_table import is_table
from petseg.errors import InputError


class ClassFlags(Protocol):
    """The flags about classes, which several jobs have."""

    @property
    def classes(self) -> str: ...  # noqa: D102
    @property
    def num_classes(self) -> int | None: ...  # noqa: D102
    @property
    def label_map(self) -> str: ...  # noqa: D102
    @property
    def ignore_label(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Classes:
    """Names and colours of the classes, and the map from raw mask values to their ids."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    """One RGB colour, 0..255, per class id."""
    label_map: LabelMap


def resolve_classes(flags: ClassFlags, masks: str, pairs: pa.Table | None = None) -> Classes:
    """Return the classes of the masks in a folder (an absolute location). `pairs` is their manifest.

    They come from `classes.json` in the folder, unless --classes, --num-classes or --label-map is given; then a line
    says that the file is not used. If neither says which raw value is which class, the values in the masks of `pairs`
    decide: 0, 1, 2, … or 1, 2, 3, … are the classes in this order. A line says so.

    Raises `InputError`, naming the flag or the file, if they are invalid. Raises `UnavailableError` if storage does not
    answer.
    """
    described = read_classes(masks)
    given = [name for name in ("classes", "num_classes", "label_map") if getattr(flags, name)]
    if described is not None and not given:
        try:
            names = labels.class_names(len(described.classes), ",".join(described.classes))
            ignored = flags.ignore_label or described.ignore_label
            label_map = LabelMap.parse(described.label_map, len(names), names, ignored)
        except InputError as error:
            raise InputError(f"{storage.join(masks, files.CLASSES)}: {error}") from error
        return Classes(names, described.palette or labels.palette(len(names)), label_map)
    if described is not None:
        flag = given[0].replace("_", "-")
        print(f"note: {storage.join(masks, files.CLASSES)} is not used, because --{flag} is given")
    names = labels.class_names(flags.num_classes, flags.classes)
    label_map = LabelMap.parse(flags.label_map, len(names), names, flags.ignore_label)
    if pairs is not None and not flags.label_map:
        names, label_map = _number_from_masks(flags, pairs, names, label_map)
    return Classes(names, labels.palette(len(names)), label_map)


def _number_from_masks(
    flags: ClassFlags, pairs: pa.Table, names: tuple[str, ...], label_map: LabelMap
) -> tuple[tuple[str, ...], LabelMap]:
    """Return the names and the label map for the raw values in the masks; those given, if the values fit no others."""
    ignored = {raw for raw, class_id in label_map.ids.items() if class_id == IGNORE_ID} if flags.ignore_label else None
    first, number = first_value(scan_masks(pairs, MAX_PIXELS), ignored) or (1, len(names))
    if flags.classes or flags.num_classes:
        if number > len(names):
            return names, label_map
        number = len(names)
    if (first, number) == (1, len(names)):
        return names, label_map
    text = ",".join(f"{first + class_id}:{class_id}" for class_id in range(number))
    print(f"note: the masks have the values {first} to {first + number - 1}, used as --label-map {text}")
    names = labels.class_names(number, flags.classes)
    return names, LabelMap.parse(text, number, names, flags.ignore_label)


def numbered_classes(
    names: tuple[str, ...], colours: Mapping[str, tuple[int, int, int]] | None = None
) -> ClassesConfig:
    """Return the description of masks whose values are class ids, and 255 where pixels are ignored.

    `colours` are those of some classes, by name. The others have those of `labels.palette`.
    """
    palette = zip(names, labels.palette(len(names)), strict=True)
    return ClassesConfig(
        classes=names,
        # A name that is a number is given as such: in a label map, names come before ids.
        label_map=",".join(f"{i}:{name if name.isdecimal() else i}" for i, name in enumerate(names)),
        ignore_label=str(IGNORE_ID),
        palette=tuple((colours or {}).get(name, colour) for name, colour in palette),
    )


def read_classes(masks: str) -> ClassesConfig | None:
    """Return the content of `classes.json` in a folder of masks, or beside a table of them; None if there is none.

    Raises `InputError` if it cannot be read or is invalid.
    """
    if is_table(masks):
        masks = masks.rpartition("/")[0]
    location = storage.join(masks, files.CLASSES)
    try:
        content = storage.read(location)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        if storage.is_local(location):
            raise
        # S3 also denies access to a missing object if its folder may not be listed.
        print(f"note: {location}: access denied; the job continues as if there were no such file")
        return None
    return from_json(ClassesConfig, content, location)


def write_classes(masks: str, classes: ClassesConfig) -> None:
    """Write `classes.json` to a folder of masks. Raises `OSError` or `UnavailableError` if it cannot be written."""
    storage.write(storage.join(masks, files.CLASSES), to_json(classes).encode())
