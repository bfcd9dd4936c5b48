"""Raw values of all masks of a set, and what they say of its classes."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from petseg import storage
from petseg.data.decode import max_bytes
from petseg.data.image_file import DecodeError
from petseg.data.labels import IGNORE_ID, MAX_RAW_VALUES
from petseg.data.mask_pixels import raw_values
from petseg.lookahead import map_ahead

MAX_VALUES = 300
"""Maximum number of raw values that are counted in a mask: those with the most pixels."""

_MAX_SUGGESTED_CLASSES = 40
_QUEUED_PER_THREAD = 4


@dataclass(frozen=True)
class Labels:
    """Sums over all masks of one kind, colours or numbers."""

    pixels: dict[int, int]
    """Number of pixels with each raw value."""
    files: dict[int, int]
    """Number of masks that contain each raw value."""
    colours: bool
    """True if more masks are colours than numbers; the raw values are then 0xRRGGBB."""


def sum_values(of_masks: Iterable[tuple[dict[int, int], bool]]) -> Labels:
    """Sum the raw values of masks of the more frequent kind: colours or numbers. See `mask_pixels.raw_values`.

    If both are as frequent, numbers are summed. The masks of the other kind are not counted.
    """
    pixels: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    files: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    masks: Counter[bool] = Counter()
    for values, is_colours in of_masks:
        masks[is_colours] += 1
        pixels[is_colours].update(values)
        files[is_colours].update(values.keys())
    colours = masks[True] > masks[False]
    return Labels(dict(pixels[colours]), dict(files[colours]), colours)


def scan_masks(pairs: pa.Table, max_pixels: int) -> Labels:
    """Sum the raw values of the masks of a manifest. Masks that cannot be read are skipped.

    Raises `UnavailableError` if storage does not answer.
    """
    threads = len(os.sched_getaffinity(0))

    def scan(content: bytes | OSError) -> tuple[dict[int, int], bool] | None:
        try:
            return None if isinstance(content, OSError) else raw_values(content, max_pixels, MAX_VALUES)
        except DecodeError:  # the job names it when it decodes the pair
            return None

    def scanned() -> Iterator[tuple[dict[int, int], bool]]:
        with ThreadPoolExecutor(threads) as pool:
            contents = storage.read_each((mask.as_py() for mask in pairs["mask"]), max_bytes(max_pixels))
            for values in map_ahead(pool, scan, contents, _QUEUED_PER_THREAD * threads):
                if values is not None:
                    yield values

    return sum_values(scanned())


def suggest(raw_labels: Labels, ignored: Set[int] | None = None) -> list[str] | None:
    """Return the flags that make these raw values classes, except those in `ignored`.

    Without `ignored`, the number 255 is ignored, as in training, except if 0 and 255 are the only values: such masks
    are black and white. Returns None if there are fewer than 2 or more than 40 values, or if a label map cannot hold
    one of them.
    """
    values = sorted(raw_labels.pixels)
    if ignored is not None:
        values = [value for value in values if value not in ignored]
    elif not raw_labels.colours and values != [0, IGNORE_ID]:  # 0 and 255 are black and white
        values = [value for value in values if value != IGNORE_ID]
    if not 2 <= len(values) <= _MAX_SUGGESTED_CLASSES:
        return None
    if raw_labels.colours:
        return _label_map_flags([f"#{value:06x}" for value in values])
    if values[0] < 0 or values[-1] >= MAX_RAW_VALUES:
        return None
    if values == list(range(1, len(values) + 1)):
        return ["--num-classes", str(len(values))]
    return _label_map_flags([str(value) for value in values])


def _label_map_flags(raw: list[str]) -> list[str]:
    return ["--num-classes", str(len(raw)), "--label-map", ",".join(f"{value}:{i}" for i, value in enumerate(raw))]


def first_value(raw_labels: Labels, ignored: Set[int] | None = None) -> tuple[int, int] | None:
    """Return (first raw value, number of values) if the values are all numbers from 0 or 1 on, without a gap.

    `ignored` is that of `suggest`. Returns None for other values, and for fewer than 2.
    """
    flags = None if raw_labels.colours else suggest(raw_labels, ignored)
    if flags is None:
        return None
    number = int(flags[1])
    from_zero = ",".join(f"{value}:{value}" for value in range(number))
    return {(): (1, number), (from_zero,): (0, number)}.get(tuple(flags[3:]))
