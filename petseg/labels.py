"""Classes: their names and colours, and how the raw values of a mask become class ids. Arrays only, no files."""

import colorsys

import numpy as np

from petseg.config import InputError

IGNORE_ID = 255
"""Class id of pixels that count neither in the loss nor in a score."""

UNKNOWN_ID = 254
"""What `lookup_table` gives for a raw value that no class covers; never a class id, and never left in a mask."""

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


def parse_label_map(text: str, num_classes: int) -> dict[int, int]:
    """Raw mask value → class id, from text such as "1:0,2:1,3:2".

    Empty text means that raw values count from 1, as in the Oxford-IIIT Pet trimaps: {1: 0, 2: 1, …}. The raw value
    255 means "ignore" unless the text maps it. A class id of 255 means "ignore", too.

    Raises `InputError`, naming the flag, on anything else.
    """
    if not text:
        return {IGNORE_ID: IGNORE_ID} | {i + 1: i for i in range(num_classes)}
    mapping: dict[int, int] = {}
    for part in text.split(","):
        raw_text, _, id_text = part.partition(":")
        if not (raw_text.strip().isdecimal() and id_text.strip().isdecimal()):
            raise InputError(f'--label-map: {part!r} is not "raw value:class id", as in "0:0,1:1,2:2"')
        raw, class_id = int(raw_text), int(id_text)
        if raw > 65535 or (class_id >= num_classes and class_id != IGNORE_ID):
            raise InputError(
                f"--label-map: {part!r}: raw values go from 0 to 65535, class ids from 0 to {num_classes - 1} "
                f"(--num-classes {num_classes}), and {IGNORE_ID} to ignore"
            )
        if raw in mapping:
            raise InputError(f"--label-map: the raw value {raw} is there twice")
        mapping[raw] = class_id
    unused = sorted(set(range(num_classes)) - set(mapping.values()))
    if unused:
        raise InputError(f"--label-map: no raw value gives class {unused[0]} of --num-classes {num_classes}")
    return {IGNORE_ID: IGNORE_ID} | mapping


def format_label_map(mapping: dict[int, int]) -> str:
    """The text from which `parse_label_map` makes this mapping."""
    return ",".join(f"{raw}:{class_id}" for raw, class_id in sorted(mapping.items()))


def lookup_table(mapping: dict[int, int]) -> np.ndarray:
    """uint8 array of 65,536 class ids, indexed by raw value, `UNKNOWN_ID` where no class covers it."""
    table = np.full(65536, UNKNOWN_ID, np.uint8)
    for raw, class_id in mapping.items():
        table[raw] = class_id
    return table


def unknown_values_message(values: list[int], mapping: dict[int, int]) -> str:
    """Why these raw values are refused, and the flag that would take them."""
    covered = sorted(raw for raw, class_id in mapping.items() if class_id != IGNORE_ID)
    num_classes = len({mapping[raw] for raw in covered})
    shown = ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
    message = f"has the value {shown}, but the classes cover {', '.join(map(str, covered[:8]))}"
    message += ", …" if len(covered) > 8 else ""
    if values == [0]:
        from_zero = ",".join(f"{i}:{i}" for i in range(num_classes))
        return f"{message}; if your masks count from 0, pass --label-map {from_zero}"
    return f"{message}; name every value with --label-map RAW:ID,… (ID {IGNORE_ID} to ignore), or set --num-classes"
