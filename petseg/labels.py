"""Classes: their names and colours, and how the raw values of a mask become class ids. Arrays only, no files."""

import colorsys
import functools
from dataclasses import dataclass

import numpy as np

from petseg.config import InputError

IGNORE_ID = 255
"""Class id of pixels that count neither in the loss nor in a score."""

UNKNOWN_ID = 254
"""What `LabelMap.table` gives for a raw value that no class covers; never a class id, and never left in a mask."""

_TABLE_SIZE = 65536  # every value of a 16-bit mask

_PET_NAMES = ("pet", "background", "border")
_PET_PALETTE = ((233, 116, 81), (33, 41, 60), (250, 224, 120))


def class_names(num_classes: int) -> tuple[str, ...]:
    """One name per class id: those of the Oxford-IIIT Pet trimaps for three classes, else class_0, class_1, …"""
    return _PET_NAMES if num_classes == 3 else tuple(f"class_{i}" for i in range(num_classes))


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
    """Raw value → class id, `IGNORE_ID` included."""

    num_classes: int

    @classmethod
    def parse(cls, text: str, num_classes: int) -> "LabelMap":
        """The map of text such as "1:0,2:1,3:2".

        Empty text means that raw values count from 1, as in the Oxford-IIIT Pet trimaps: 1 is class 0, and so on. The
        raw value 255 is ignored unless the text maps it; so is every value that is mapped to 255.

        Raises `InputError`, naming the flag, on anything else.
        """
        if not text:
            return cls({i + 1: i for i in range(num_classes)} | {IGNORE_ID: IGNORE_ID}, num_classes)
        ids: dict[int, int] = {}
        for part in text.split(","):
            raw_text, _, id_text = part.partition(":")
            if not (raw_text.strip().isdecimal() and id_text.strip().isdecimal()):
                raise InputError(f'--label-map: {part!r} is not "raw value:class id", as in "0:0,1:1,2:2"')
            raw, class_id = int(raw_text), int(id_text)
            if raw >= _TABLE_SIZE or (class_id >= num_classes and class_id != IGNORE_ID):
                raise InputError(
                    f"--label-map: {part!r}: raw values go from 0 to {_TABLE_SIZE - 1}, class ids from 0 to "
                    f"{num_classes - 1} (--num-classes {num_classes}), and {IGNORE_ID} to ignore"
                )
            if raw in ids:
                raise InputError(f"--label-map: the raw value {raw} is there twice")
            ids[raw] = class_id
        unused = sorted(set(range(num_classes)) - set(ids.values()))
        if unused:
            raise InputError(f"--label-map: no raw value gives class {unused[0]} of --num-classes {num_classes}")
        return cls({IGNORE_ID: IGNORE_ID} | ids, num_classes)

    def __str__(self) -> str:
        """The text from which `parse` makes this map."""
        return ",".join(f"{raw}:{class_id}" for raw, class_id in sorted(self.ids.items()))

    @functools.cached_property
    def table(self) -> np.ndarray:
        """uint8 (65536,): class ids indexed by raw value, `UNKNOWN_ID` where no class covers it."""
        table = np.full(_TABLE_SIZE, UNKNOWN_ID, np.uint8)
        for raw, class_id in self.ids.items():
            table[raw] = class_id
        return table

    def refusal(self, values: list[int], has_255: bool = False) -> str:
        """Why a mask with these raw values, which no class covers, is refused, and the flag that would take them.

        `has_255`: whether the mask has the value 255, too, which is no unknown one.
        """
        covered = sorted(raw for raw, class_id in self.ids.items() if class_id != IGNORE_ID)
        message = f"it has the value {_some(values)}, but the classes cover {_some(covered)}"
        if values == [0] and has_255:
            return f"{message}; if your masks are black and white, pass --num-classes 2 --label-map 0:0,255:1"
        if values == [0]:
            from_zero = ",".join(f"{i}:{i}" for i in range(self.num_classes))
            return f"{message}; if your masks count from 0, pass --label-map {from_zero}"
        return f"{message}; pass --label-map RAW:ID,… with every value (ID {IGNORE_ID} to ignore), or --num-classes"


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
