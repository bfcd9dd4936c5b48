"""Define class names, class colours and the map from raw mask values to class ids. Arrays only, no files."""

import colorsys
import functools
import re
import threading
from dataclasses import dataclass

import numpy as np

from petseg.errors import InputError

MAX_CLASSES = 254
"""Largest number of classes: class ids share a byte with `IGNORE_ID` and `UNKNOWN_ID`."""

IGNORE_ID = 255
"""Class id of the pixels that count neither in the loss nor in a score."""

UNKNOWN_ID = 254
"""Id in `LabelMap.table` of the raw values that no class covers. It is never a class id, and never left in a mask."""

MAX_RAW_VALUES = 2**16
"""Number of raw values that can be mapped: all values of a 16-bit mask."""

DEFAULT_CLASSES = 3
"""Number of classes if nothing says how many there are."""

TRANSPARENT = 2**24
"""Raw value of the fully transparent pixels of a colour mask: the number after the last colour, 0xFFFFFF."""

LOSSY_REMEDY = "masks as JPEG are not exact: compression changes values; save them again as PNG, from the originals"
"""Reason and remedy for JPEG masks with a value that no class covers."""

_TABLE_LOCK = threading.Lock()


def class_names(num_classes: int | None = None, text: str = "") -> tuple[str, ...]:
    """Return one name per class id.

    The names come from `text`, such as "cat,dog,background". Without it, they are class_0, class_1, … for
    `num_classes` classes, by default `DEFAULT_CLASSES`.

    Raises `InputError`, naming the flag, if names are empty, equal, or not as many as `num_classes`.
    """
    if not text:
        return tuple(f"class_{i}" for i in range(num_classes or DEFAULT_CLASSES))
    names = tuple(name.strip() for name in text.split(","))
    if len(set(names)) < len(names) or not all(name.isprintable() and name for name in names):
        raise InputError(f'--classes {text!r}: give a name of its own to each class, as in "cat,dog,background"')
    if not 2 <= len(names) <= MAX_CLASSES:
        raise InputError(f"--classes {text!r}: give 2 to {MAX_CLASSES} names")
    if num_classes not in (None, len(names)):
        raise InputError(f"--num-classes {num_classes}: --classes has {len(names)} names; leave --num-classes out")
    return names


def palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return one RGB colour, 0..255, per class id, each unlike the others.

    The hues are a golden angle apart, which spreads them out for any number of classes. The brightness cycles through
    three values as well.
    """
    golden_turn = (5**0.5 - 1) / 2
    colours = [colorsys.hsv_to_rgb(i * golden_turn % 1, 0.75, (0.95, 0.7, 0.5)[i % 3]) for i in range(num_classes)]
    return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colours)


@dataclass(frozen=True)
class LabelMap:
    """A map from raw mask values to class ids."""

    ids: dict[int, int]
    """Maps raw values to class ids, `IGNORE_ID` included. A raw value is a number, or a colour as 0xRRGGBB."""

    num_classes: int

    colours: bool = False
    """True if masks are colour images."""

    @classmethod
    def parse(
        cls, text: str, num_classes: int, names: tuple[str, ...] = (), ignore: str = "", *, require_all: bool = True
    ) -> "LabelMap":
        """Parse text such as "1:0,2:1,3:2", or "#ff0000:cat,#00ff00:dog" with `names` and colours.

        Empty text means that raw values count from 1: 1 is class 0, and so on.
        Raw values in `ignore` ("0,254") are ignored, and so are those that the text maps to 255. Without `ignore`, the
        number 255 is ignored unless the text maps it.

        Raises `InputError`, naming the flag, for any other text, and with `require_all` if a class has no raw value.
        """
        ids_by_value: dict[tuple[bool, int], int] = {}
        for part in text.split(",") if text else [f"{i + 1}:{i}" for i in range(num_classes)]:
            raw, class_id = _parse_entry(part, num_classes, names)
            if raw in ids_by_value:
                raise InputError(f"--label-map: the raw value {part.partition(':')[0].strip()} is given twice")
            ids_by_value[raw] = class_id
        unused = sorted(set(range(num_classes)) - set(ids_by_value.values()))
        if unused and require_all:
            raise InputError(f"--label-map: no raw value gives class {unused[0]} of {num_classes}")
        for value in ignore.split(",") if ignore else ():
            raw = _parse_raw_value(value)
            if raw is None:
                raise InputError(f'--ignore-label: {value!r} is neither a number, 0 to 65535, nor a colour, "#RRGGBB"')
            if ids_by_value.setdefault(raw, IGNORE_ID) != IGNORE_ID:
                raise InputError(f"--ignore-label: {value.strip()} is a class in --label-map")
        kinds = {is_colour for is_colour, _ in ids_by_value}
        if len(kinds) > 1:
            raise InputError(
                "--label-map, --ignore-label: numbers and colours; a mask has either the ones or the others"
            )
        ids = {raw: class_id for (_, raw), class_id in ids_by_value.items()}
        if not ignore and kinds == {False}:
            ids.setdefault(IGNORE_ID, IGNORE_ID)
        return cls(ids, num_classes, colours=kinds == {True})

    def __str__(self) -> str:
        """Return the text from which `parse` makes this map."""
        return ",".join(f"{self.show(raw)}:{class_id}" for raw, class_id in sorted(self.ids.items()))

    def show(self, raw: int) -> str:
        """Return a raw value as it is written in --label-map."""
        return f"#{raw:06x}" if self.colours else str(raw)

    @property
    def table(self) -> np.ndarray:
        """Class ids indexed by raw value, uint8, read-only: (65536,), or (2^24 + 1,) for colours and `TRANSPARENT`.

        A raw value that no class covers has `UNKNOWN_ID`.
        """
        with _TABLE_LOCK:  # otherwise each of several threads would build its own
            return _table(tuple(self.ids.items()), self.colours)

    def explain_unknown(self, values: list[int], has_255: bool = False) -> str:
        """Return why a mask with these raw values, which no class covers, is refused, and the flag that would map them.

        `has_255` is true if the mask also has the value 255, even if that value is not unknown.
        """
        covered = sorted(raw for raw, class_id in self.ids.items() if class_id != IGNORE_ID)
        message = f"it has the value {self._join(values)}, but the classes cover {self._join(covered)}"
        if self.colours:
            return f"{message}; add it to --label-map, or to --ignore-label"
        if values == [0] and has_255:
            return f"{message}; if your masks are black and white, pass --num-classes 2 --label-map 0:0,255:1"
        if values == [0]:
            from_zero = ",".join(f"{i}:{i}" for i in range(self.num_classes))
            return f"{message}; if your masks count from 0, pass --label-map {from_zero}"
        return f"{message}; pass --label-map RAW:ID,… with every value, --ignore-label, or --num-classes"

    def _join(self, values: list[int]) -> str:
        return ", ".join(map(self.show, values[:8])) + (", …" if len(values) > 8 else "")


@functools.lru_cache(4)
def _table(ids: tuple[tuple[int, int], ...], colours: bool) -> np.ndarray:
    table = np.full(TRANSPARENT + 1 if colours else MAX_RAW_VALUES, UNKNOWN_ID, np.uint8)
    if colours:
        table[TRANSPARENT] = IGNORE_ID
    for raw, class_id in ids:
        table[raw] = class_id
    table.flags.writeable = False
    return table


def _parse_entry(part: str, num_classes: int, names: tuple[str, ...]) -> tuple[tuple[bool, int], int]:
    """Parse one part of --label-map: ((True for a colour, raw value), class id)."""
    raw_text, _, class_text = part.partition(":")
    raw, class_text = _parse_raw_value(raw_text), class_text.strip()
    number = int(class_text) if class_text.isdecimal() else -1
    class_id = names.index(class_text) if class_text in names else number
    if raw is None or not (0 <= class_id < num_classes or class_id == IGNORE_ID):
        known = f" or one of {', '.join(names)}" if names else ""
        raise InputError(
            f'--label-map: {part!r} is not "raw value:class", as in "0:0,1:1" or "#ff0000:0,#00ff00:1"; raw values go '
            f"from 0 to {MAX_RAW_VALUES - 1}, classes from 0 to {num_classes - 1}{known}, and {IGNORE_ID} to ignore"
        )
    return raw, class_id


def _parse_raw_value(text: str) -> tuple[bool, int] | None:
    """Parse a raw value: (True for a colour, its number); None if it is neither a colour nor a number."""
    text = text.strip()
    if re.fullmatch("#[0-9a-fA-F]{6}", text):
        return True, int(text[1:], 16)
    return (False, int(text)) if text.isascii() and text.isdecimal() and int(text) < MAX_RAW_VALUES else None
