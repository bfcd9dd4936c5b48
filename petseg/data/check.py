"""Check pairs before training: find the values in the masks, the pairs that training would refuse, and duplicates.

This runs in one plain process, without Ray and torch. Threads decode, and memory holds one row per pair. Nothing is
written here.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from petseg.data import decode, duplicates, manifest
from petseg.data.image_file import DecodeError
from petseg.data.labels import IGNORE_ID, MAX_RAW_VALUES, UNKNOWN_ID, LabelMap
from petseg.data.pairs import decode_pair, raw_values
from petseg.lookahead import map_ahead

ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("mask", pa.string()),
        ("split", pa.string()),
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
"""Schema of the table with one row per pair, and one per photo or mask without a partner. Unknown values are null.

- `split`: the split that training would put the pair in
- `height`, `width`: the photo's size in pixels, once it is turned upright by its EXIF `orientation` (1 to 8)
- `values`: the raw values of the mask with the most pixels, at most 300, and their pixel counts; a colour is 0xRRGGBB
- `like`: the id of a photo that is equal or looks the same; if there are several, one in another split is preferred
- `error`: the reason why training would refuse the pair; null if it would accept it
"""

_HASH_SIDE = 64
_MAX_VALUES = 300
_QUEUED_PER_THREAD = 4
_MAX_SUGGESTED_CLASSES = 40


@dataclass(frozen=True)
class Row:
    """The findings about one pair; a value that is not known is None. See `ROWS` for the fields."""

    id: str
    height: int | None = None
    width: int | None = None
    orientation: int | None = None
    values: dict[int, int] | None = None
    colours: bool = False
    sha256: str | None = None
    difference_hash: int | None = None
    error: str | None = None


def scan_pairs(pairs: pa.Table, label_map: LabelMap, max_pixels: int) -> Iterator[Row]:
    """Yield one `Row` for each row of a manifest, in order. Raises `UnavailableError` if storage does not answer."""
    threads = len(os.sched_getaffinity(0))

    def scan(pair: tuple[dict[str, str], bytes, bytes, str]) -> Row:
        return _scan_pair(*pair, label_map, max_pixels)

    with ThreadPoolExecutor(threads) as pool:
        contents = manifest.read_pairs(pairs, decode.max_bytes(max_pixels))
        yield from map_ahead(pool, scan, contents, _QUEUED_PER_THREAD * threads)


def _scan_pair(row: dict[str, str], photo: bytes, mask: bytes, error: str, label_map: LabelMap, max_pixels: int) -> Row:
    if error:
        return Row(row["id"], error=error)
    fields: dict[str, object] = {"sha256": hashlib.sha256(photo).hexdigest()}
    try:
        fields["height"], fields["width"] = decode.upright_size(photo, max_pixels)
        fields["orientation"] = decode.orientation(photo, max_pixels)
        fields["difference_hash"] = duplicates.difference_hash(decode.decode_small(photo, _HASH_SIDE, max_pixels))
    except DecodeError as refused:
        return Row(row["id"], **fields, error=f"{row['image']}: {refused}")  # pyright: ignore[reportArgumentType]
    try:
        fields["values"], fields["colours"] = raw_values(mask, max_pixels, _MAX_VALUES, label_map.colours)
        decode_pair(photo, mask, (16, 16), label_map, max_pixels)  # raises as training would; any size will do
    except DecodeError as refused:
        fields["error"] = f"{row['mask'] if refused.in_mask else row['image']}: {refused}"
    return Row(row["id"], **fields)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Labels:
    """Sums over all masks of one kind, colours or numbers."""

    pixels: dict[int, int]
    """Number of pixels with each raw value."""
    files: dict[int, int]
    """Number of masks that contain each raw value."""
    colours: bool
    """True if more masks are colours than numbers; the raw values are then 0xRRGGBB."""


def labels_of(rows: Iterable[Row]) -> Labels:
    """Sum the raw values over the readable masks of the more frequent kind: colours or numbers (if equal, numbers).

    The masks of the other kind are not counted.
    """
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


def class_pixels(raw_labels: Labels, label_map: LabelMap) -> tuple[list[int], list[int], int]:
    """Return (pixels per class, masks per class, pixels whose raw value has no class). Ignored pixels are not counted.

    The number of masks is an upper bound: a mask with two raw values of one class counts twice.
    """
    pixels, files, unknown = [0] * label_map.num_classes, [0] * label_map.num_classes, 0
    for value, count in raw_labels.pixels.items():
        class_id = label_map.ids.get(value, UNKNOWN_ID) if raw_labels.colours == label_map.colours else UNKNOWN_ID
        if class_id == UNKNOWN_ID:
            unknown += count
        elif class_id != IGNORE_ID:
            pixels[class_id] += count
            files[class_id] += raw_labels.files[value]
    return pixels, files, unknown


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


def find_duplicates(rows: list[Row]) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """Return (exact duplicates, near duplicates) as indices into `rows`.

    An exact duplicate is (first photo with these bytes, other photo with them). A near duplicate is (photo, other photo
    that looks the same, number of differing bits).
    """
    first: dict[str, int] = {}
    exact = []
    for index, row in enumerate(rows):
        if row.sha256 is not None and first.setdefault(row.sha256, index) != index:
            exact.append((first[row.sha256], index))
    known = [index for index, row in enumerate(rows) if row.difference_hash is not None]
    hashes = np.array([rows[index].difference_hash for index in known], np.uint64)
    repeated = {index for _, index in exact}
    near = [
        (known[one], known[other], bits)
        for one, other, bits in duplicates.near(hashes)
        if rows[known[one]].sha256 != rows[known[other]].sha256 and known[other] not in repeated
    ]
    return exact, near


def table(
    rows: list[Row], pairs: pa.Table, splits: Mapping[str, str], like: Mapping[str, str], unpaired: list[dict[str, str]]
) -> pa.Table:
    """Return the table of all findings, with the schema `ROWS`, sorted by id.

    `splits` and `like` map ids to the columns `split` and `like`. `unpaired` are the files without a partner.
    """
    entries = [
        {
            **pair,
            "split": splits.get(row.id),
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
    entries = [{name: None for name in ROWS.names} | entry for entry in (*entries, *unpaired)]
    return pa.Table.from_pylist(sorted(entries, key=lambda entry: entry["id"] or ""), ROWS)
