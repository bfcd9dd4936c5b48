"""Classes: their names and colours, and how the raw values of a mask become class ids. Arrays only, no files."""

import colorsys
import functools
import re
from dataclasses import dataclass

import numpy as np

from petseg.errors import InputError

MAX_CLASSES = 254
"""So that a class id fits into a byte beside the two that follow."""

IGNORE_ID = 255
"""Class id of pixels that count neither in the loss nor in a score."""

UNKNOWN_ID = 254
"""What `LabelMap.table` gives for a raw value that no class covers; never a class id, and never left in a mask."""

NUMBERS = 2**16
"""As many raw values can be mapped: every value of a 16-bit mask."""

_COLOURS = 2**24

_PET_NAMES = ("pet", "background", "border")
_PET_PALETTE = ((233, 116, 81), (33, 41, 60), (250, 224, 120))


def class_names(num_classes: int | None = None, text: str = "") -> tuple[str, ...]:
    """One name per class id: those of text such as "cat,dog,background", else of the Oxford-IIIT Pet trimaps for three
    classes, else class_0, class_1, …

    Raises `InputError`, naming the flag, where names are empty, equal, or not as many as `num_classes`.
    """
    if not text:
        return _PET_NAMES if num_classes in (None, 3) else tuple(f"class_{i}" for i in range(num_classes))
    names = tuple(name.strip() for name in text.split(","))
    if len(set(names)) < len(names) or not all(name.isprintable() and name for name in names):
        raise InputError(f'--classes {text!r}: give a name of its own to each class, as in "cat,dog,background"')
    if not 2 <= len(names) <= MAX_CLASSES:
        raise InputError(f"--classes {text!r}: give 2 to {MAX_CLASSES} names")
    if num_classes not in (None, len(names)):
        raise InputError(f"--num-classes {num_classes}: --classes has {len(names)} names; leave --num-classes out")
    return names


def palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """One RGB colour, 0..255, per class id, each unlike the others.

    Hues a golden angle apart stay spread out for any count; the brightness cycles in addition.
    """
    if num_classes == 3:
        return _PET_PALETTE
    golden_turn = (5**0.5 - 1) / 2
    colours = [colorsys.hsv_to_rgb(i * golden_turn % 1, 0.75, (0.95, 0.7, 0.5)[i % 3]) for i in range(num_classes)]
    return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colours)


@dataclass(frozen=True)
class LabelMap:
    """Which raw mask value means which class id."""

    ids: dict[int, int]
    """Raw value → class id, `IGNORE_ID` included. A raw value is a number, or a colour as 0xRRGGBB."""

    num_classes: int

    colours: bool = False
    """Whether masks are colour images."""

    @classmethod
    def parse(cls, text: str, num_classes: int, names: tuple[str, ...] = (), ignore: str = "") -> "LabelMap":
        """The map of text such as "1:0,2:1,3:2", or "#ff0000:cat,#00ff00:dog" with `names` and colours.

        Empty text means that raw values count from 1, as in the Oxford-IIIT Pet trimaps: 1 is class 0, and so on. The
        raw values in `ignore` ("0,254") are ignored, and all that are mapped to 255; without it, the number 255 is,
        unless the text maps it.

        Raises `InputError`, naming the flag, on anything else.
        """
        found: dict[tuple[bool, int], int] = {}
        for part in text.split(",") if text else [f"{i + 1}:{i}" for i in range(num_classes)]:
            raw, class_id = _entry(part, num_classes, names)
            if raw in found:
                raise InputError(f"--label-map: the raw value {part.partition(':')[0].strip()} is there twice")
            found[raw] = class_id
        unused = sorted(set(range(num_classes)) - set(found.values()))
        if unused:
            raise InputError(f"--label-map: no raw value gives class {unused[0]} of {num_classes}")
        for value in ignore.split(",") if ignore else ():
            raw = _raw(value)
            if raw is None:
                raise InputError(f'--ignore-label: {value!r} is neither a number, 0 to 65535, nor a colour, "#RRGGBB"')
            if found.setdefault(raw, IGNORE_ID) != IGNORE_ID:
                raise InputError(f"--ignore-label: {value.strip()} is a class in --label-map")
        kinds = {is_colour for is_colour, _ in found}
        if len(kinds) > 1:
            raise InputError(
                "--label-map, --ignore-label: numbers and colours; a mask has either the ones or the others"
            )
        ids = {raw: class_id for (_, raw), class_id in found.items()}
        if not ignore and kinds == {False}:
            ids.setdefault(IGNORE_ID, IGNORE_ID)
        return cls(ids, num_classes, colours=kinds == {True})

    def __str__(self) -> str:
        """The text from which `parse` makes this map."""
        return ",".join(f"{self.show(raw)}:{class_id}" for raw, class_id in sorted(self.ids.items()))

    def show(self, raw: int) -> str:
        """A raw value as it stands in the flag."""
        return f"#{raw:06x}" if self.colours else str(raw)

    @functools.cached_property
    def table(self) -> np.ndarray:
        """uint8 (65536,), of colours (2^24,): class ids indexed by raw value, `UNKNOWN_ID` where no class covers it."""
        table = np.full(_COLOURS if self.colours else NUMBERS, UNKNOWN_ID, np.uint8)
        for raw, class_id in self.ids.items():
            table[raw] = class_id
        return table

    def refusal(self, values: list[int], has_255: bool = False) -> str:
        """Why a mask with these raw values, which no class covers, is refused, and the flag that would take them.

        `has_255`: whether the mask has the value 255, too, which is no unknown one.
        """
        covered = sorted(raw for raw, class_id in self.ids.items() if class_id != IGNORE_ID)
        message = f"it has the value {self._some(values)}, but the classes cover {self._some(covered)}"
        if self.colours:
            return f"{message}; add it to --label-map, or to --ignore-label"
        if values == [0] and has_255:
            return f"{message}; if your masks are black and white, pass --num-classes 2 --label-map 0:0,255:1"
        if values == [0]:
            from_zero = ",".join(f"{i}:{i}" for i in range(self.num_classes))
            return f"{message}; if your masks count from 0, pass --label-map {from_zero}"
        return f"{message}; pass --label-map RAW:ID,… with every value, --ignore-label, or --num-classes"

    def _some(self, values: list[int]) -> str:
        return ", ".join(map(self.show, values[:8])) + (", …" if len(values) > 8 else "")


def _entry(part: str, num_classes: int, names: tuple[str, ...]) -> tuple[tuple[bool, int], int]:
    """One part of --label-map: (whether it is a colour, raw value), class id."""
    raw_text, _, class_text = part.partition(":")
    raw, class_text = _raw(raw_text), class_text.strip()
    number = int(class_text) if class_text.isdecimal() else -1
    class_id = names.index(class_text) if class_text in names else number
    if raw is None or not (0 <= class_id < num_classes or class_id == IGNORE_ID):
        known = f" or one of {', '.join(names)}" if names else ""
        raise InputError(
            f'--label-map: {part!r} is not "raw value:class", as in "0:0,1:1" or "#ff0000:0,#00ff00:1"; raw values go '
            f"from 0 to {NUMBERS - 1}, classes from 0 to {num_classes - 1}{known}, and {IGNORE_ID} to ignore"
        )
    return raw, class_id


def _raw(text: str) -> tuple[bool, int] | None:
    """Whether a raw value is a colour, and its number; None where it is neither."""
    text = text.strip()
    if re.fullmatch("#[0-9a-fA-F]{6}", text):
        return True, int(text[1:], 16)
    return (False, int(text)) if text.isascii() and text.isdecimal() and int(text) < NUMBERS else None
