"""A look at pairs before any training: what is in their masks, what training would refuse, and what is there twice.

A plain process, no Ray and no torch: threads decode, and what is held is a row per pair. Nothing is written here.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from petseg.data import decode, duplicates, manifest
from petseg.data.decode import DecodeError
from petseg.data.labels import IGNORE_ID, NUMBERS, UNKNOWN_ID, LabelMap
from petseg.data.pairs import decode_pair, raw_values

ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("mask", pa.string()),
        ("side", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("orientation", pa.int8()),
        ("values", pa.list_(pa.struct([("value", pa.int32()), ("pixels", pa.int64())]))),
        ("sha256", pa.string()),
        ("difference_hash", pa.uint64()),
        ("like", pa.string()),
        ("error", pa.string()),
    ]
)
"""A row per pair, and per photo or mask without a partner. `side` is where training would put it;
`height` and `width` are the photo's once it is turned upright by its EXIF `orientation` (1 to 8); `values` are the raw
values of the mask (a colour as 0xRRGGBB); `like` is the id of another photo that it repeats or looks like, on another
side of the split where there is one; `error` is why training would refuse the pair, null where it would not. What is
not known is null."""

_HASH_SIDE = 64
_VALUES_KEPT = 300
_AHEAD = 4
_SUGGESTED_VALUES = 40


@dataclass(frozen=True)
class Row:
    """What is known of one pair."""

    id: str
    height: int | None = None
    width: int | None = None
    orientation: int | None = None
    values: dict[int, int] | None = None
    colours: bool = False
    sha256: str | None = None
    difference_hash: int | None = None
    error: str | None = None


def look(pairs: pa.Table, label_map: LabelMap, max_pixels: int) -> Iterator[Row]:
    """One for each row of a manifest, in order. Raises `UnavailableError` where storage does not answer."""
    threads = len(os.sched_getaffinity(0))
    running: deque[Future[Row]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for pair in manifest.read_pairs(pairs, decode.max_bytes(max_pixels)):
            running.append(pool.submit(_look, *pair, label_map, max_pixels))
            if len(running) > _AHEAD * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _look(row: dict[str, str], photo: bytes, mask: bytes, error: str, label_map: LabelMap, max_pixels: int) -> Row:
    if error:
        return Row(row["id"], error=error)
    found: dict[str, object] = {"sha256": hashlib.sha256(photo).hexdigest()}
    try:
        found["height"], found["width"] = decode.upright_size(photo, max_pixels)
        found["orientation"] = decode.orientation(photo, max_pixels)
        found["difference_hash"] = duplicates.difference_hash(decode.decode_small(photo, _HASH_SIDE, max_pixels))
    except DecodeError as refused:
        return Row(row["id"], **found, error=f"{row['image']}: {refused}")  # pyright: ignore[reportArgumentType]
    try:
        found["values"], found["colours"] = raw_values(mask, max_pixels, _VALUES_KEPT, label_map.colours)
        decode_pair(photo, mask, (16, 16), label_map, max_pixels)
    except DecodeError as refused:
        found["error"] = f"{row['mask'] if refused.in_mask else row['image']}: {refused}"
    return Row(row["id"], **found)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Labels:
    """What all masks have in them."""

    pixels: dict[int, int]
    """Of each raw value."""
    files: dict[int, int]
    """How many masks have it."""
    colours: bool
    """Whether most masks are colour images."""


def labels_of(rows: Iterable[Row]) -> Labels:
    """The sums over all masks that could be read."""
    pixels: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    files: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    masks: Counter[bool] = Counter()
    for row in rows:
        if row.values is not None:
            masks[row.colours] += 1
            pixels[row.colours].update(row.values)
            files[row.colours].update(row.values.keys())
    colours = masks[True] > masks[False]
    return Labels(dict(pixels[colours]), dict(files[colours]), colours)


def class_pixels(found: Labels, label_map: LabelMap) -> tuple[list[int], list[int], int]:
    """Pixels of each class, masks that have it (at most: one with two of its values counts twice), and pixels that no
    class covers.
    """
    pixels, files, unknown = [0] * label_map.num_classes, [0] * label_map.num_classes, 0
    for value, count in found.pixels.items():
        class_id = label_map.ids.get(value, UNKNOWN_ID) if found.colours == label_map.colours else UNKNOWN_ID
        if class_id == UNKNOWN_ID:
            unknown += count
        elif class_id != IGNORE_ID:
            pixels[class_id] += count
            files[class_id] += found.files[value]
    return pixels, files, unknown


def suggest(found: Labels, ignored: Set[int] | None = None) -> list[str] | None:
    """Flags that would take these raw values as classes, but for those in `ignored` (without it, as in training, the
    number 255); None where they are too many to be classes, or out of a label map's reach.
    """
    values = sorted(found.pixels)
    if ignored is not None:
        values = [value for value in values if value not in ignored]
    elif not found.colours and values != [0, IGNORE_ID]:  # these are black and white
        values = [value for value in values if value != IGNORE_ID]
    if not 2 <= len(values) <= _SUGGESTED_VALUES:
        return None
    if found.colours:
        return _mapped([f"#{value:06x}" for value in values])
    if values[0] < 0 or values[-1] >= NUMBERS:
        return None
    if values == list(range(1, len(values) + 1)):
        return ["--num-classes", str(len(values))]
    return _mapped([str(value) for value in values])


def _mapped(raw: list[str]) -> list[str]:
    return ["--num-classes", str(len(raw)), "--label-map", ",".join(f"{value}:{i}" for i, value in enumerate(raw))]


def twice(rows: list[Row]) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """Places of photos with the same bytes (the first of them, and each other), and of those that look the same."""
    first: dict[str, int] = {}
    same = []
    for place, row in enumerate(rows):
        if row.sha256 is not None and first.setdefault(row.sha256, place) != place:
            same.append((first[row.sha256], place))
    known = [place for place, row in enumerate(rows) if row.difference_hash is not None]
    hashes = np.array([rows[place].difference_hash for place in known], np.uint64)
    of_same = {place for _, place in same}
    alike = [
        (known[one], known[other], bits)
        for one, other, bits in duplicates.near(hashes)
        if rows[known[one]].sha256 != rows[known[other]].sha256 and known[other] not in of_same
    ]
    return same, alike


def table(
    rows: list[Row], pairs: pa.Table, sides: Mapping[str, str], like: Mapping[str, str], alone: list[dict[str, str]]
) -> pa.Table:
    """All of it as `ROWS` has it, sorted by id; `sides` and `like` are by id, `alone` the files without a partner."""
    found = [
        {
            **pair,
            "side": sides.get(row.id),
            "height": row.height,
            "width": row.width,
            "orientation": row.orientation,
            "values": None
            if row.values is None
            else [{"value": v, "pixels": n} for v, n in sorted(row.values.items())],
            "sha256": row.sha256,
            "difference_hash": row.difference_hash,
            "like": like.get(row.id),
            "error": row.error,
        }
        for row, pair in zip(rows, pairs.to_pylist(), strict=True)
    ]
    whole = [{name: None for name in ROWS.names} | entry for entry in (*found, *alone)]
    return pa.Table.from_pylist(sorted(whole, key=lambda entry: entry["id"] or ""), ROWS)
