"""Check pairs before training: find the values in the masks, the pairs that training would refuse, and duplicates.

This runs in one plain process, without Ray and torch. Threads decode, and memory holds one row per pair. Nothing is
written here.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from petseg.data import decode, duplicates, image_file, manifest
from petseg.data.image_file import DecodeError
from petseg.data.labels import IGNORE_ID, UNKNOWN_ID, LabelMap
from petseg.data.mask_pixels import is_lossy, raw_values
from petseg.data.mask_values import MAX_VALUES, Labels
from petseg.data.notes import notes_of
from petseg.data.orientation import Drawn
from petseg.data.pairs import decode_pair
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
        ("disagreement", pa.float64()),
        ("out_of_fold", pa.bool_()),
        ("error", pa.string()),
    ]
)
"""Schema of the table with one row per pair, and one per photo or mask without a partner. Unknown values are null.

- `split`: the split that training would put the pair in
- `height`, `width`: the photo's size in pixels, once it is turned upright by its EXIF `orientation` (1 to 8)
- `values`: the raw values of the mask with the most pixels, at most 300, and their pixel counts; a colour is 0xRRGGBB
- `like`: the id of a photo that is equal or looks the same; if there are several, one in another split is preferred
- `disagreement`: how much the networks of --checkpoint disagree with the mask (`evaluation.scores.disagreement`)
- `out_of_fold`: true if these networks were not trained on the pair; false if all of them were
- `error`: the reason why training would refuse the pair; null if it would accept it
"""

_HASH_SIDE = 64
_NEAR_BLACK = 16  # of 255: a photo without any brighter pixel is probably decoded wrong, or was taken in the dark
_QUEUED_PER_THREAD = 4


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
    drawn: Drawn | None = None
    """Result of `pairs.drawn`; None if there is nothing to decide."""
    notes: tuple[str, ...] = ()
    near_black: bool = False
    is_lossy: bool = False
    """True if the mask is a JPEG."""


class Disagreement(NamedTuple):
    """Disagreement of networks with a mask: the columns `disagreement` and `out_of_fold` of `ROWS`."""

    value: float
    out_of_fold: bool


def rank(disagreements: Mapping[str, Disagreement]) -> list[str]:
    """Return the ids of the masks, the most likely label errors first.

    Masks that all networks were trained on come last: a network may have learned their errors.
    """
    return sorted(
        disagreements, key=lambda row_id: (not disagreements[row_id].out_of_fold, -disagreements[row_id].value)
    )


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
    fields: dict[str, object] = {"sha256": hashlib.sha256(photo).hexdigest(), "is_lossy": is_lossy(mask)}
    try:
        opened = image_file.open_image(photo, max_pixels)
        fields["width"], fields["height"] = opened.header.size
        fields["orientation"], fields["notes"] = opened.header.orientation, notes_of(opened)
        small = decode.decode_small(photo, _HASH_SIDE, max_pixels)
        fields["difference_hash"] = duplicates.difference_hash(small)
        fields["near_black"] = np.asarray(small).max() < _NEAR_BLACK
    except DecodeError as refused:
        return Row(row["id"], **fields, error=f"{row['image']}: {refused}")  # pyright: ignore[reportArgumentType]
    try:
        fields["values"], fields["colours"] = raw_values(mask, max_pixels, MAX_VALUES, label_map.colours)
        # Raises as training would; any size will do. `findings` decides on unclear masks, so any decision will do, too.
        pair = decode_pair(photo, mask, (16, 16), label_map, max_pixels, masks_upright=False)
        fields["drawn"] = pair.drawn
    except DecodeError as refused:
        fields["error"] = f"{row['mask'] if refused.in_mask else row['image']}: {refused}"
    return Row(row["id"], **fields)  # pyright: ignore[reportArgumentType]


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
    rows: list[Row],
    pairs: pa.Table,
    splits: Mapping[str, str],
    like: Mapping[str, str],
    disagreements: Mapping[str, Disagreement],
    unpaired: list[dict[str, str]],
) -> pa.Table:
    """Return the table of all findings, with the schema `ROWS`, sorted by id.

    `splits`, `like` and `disagreements` map ids to the columns of these names. `unpaired` are the files without a
    partner.
    """
    unscored = (None, None)
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
            **dict(zip(("disagreement", "out_of_fold"), disagreements.get(row.id, unscored), strict=True)),
            "error": row.error,
        }
        for row, pair in zip(rows, pairs.to_pylist(), strict=True)
    ]
    entries = [{name: None for name in ROWS.names} | entry for entry in (*entries, *unpaired)]
    return pa.Table.from_pylist(sorted(entries, key=lambda entry: entry["id"] or ""), ROWS)
