"""Read a finished prediction: which photos it has, how unsure each mask is, and the masks of some of them."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from petseg import files, storage
from petseg.config.base import MAX_PIXELS
from petseg.data.ids import safe_id
from petseg.data.image_file import DecodeError, open_image
from petseg.errors import InputError
from petseg.inference.plan import FORMAT
from petseg.lookahead import map_ahead

_COLUMNS = ["id", "image", "class_pixels", "unsure"]
_THREADS = 16


@dataclass(frozen=True)
class FinishedPrediction:
    """The photos of a finished prediction that have a mask."""

    location: str
    rows: pa.Table
    """Columns `id`, `image`, `class_pixels`, `unsure` and `shard` (the name of the shard's file), in order of the
    shards.
    """
    failed: int
    """Number of photos without a mask, which are not in `rows`."""
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    checkpoint: str
    """Location of the checkpoint, as it was given to the job."""

    def class_shares(self) -> np.ndarray:
        """Return the fraction of each photo's pixels that each class has: float64 (N, C)."""
        pixels = self.rows["class_pixels"].combine_chunks().flatten().to_numpy()
        pixels = pixels.reshape(-1, len(self.class_names)).astype(np.float64)
        return pixels / pixels.sum(1, keepdims=True)


def read_finished(location: str, flag: str) -> FinishedPrediction:
    """Return what a prediction has written to a folder (an absolute location).

    Raises `InputError`, naming `flag`, if it is no finished prediction, or one of an earlier version.
    """
    names = storage.list_names(location)
    if files.PLAN not in names or files.CONFIG not in names:
        raise InputError(f"{flag} {location}: no prediction (it has no {files.PLAN}); give the --output of one")
    if files.SUCCESS not in names:
        raise InputError(f"{flag} {location}: the prediction is not finished; give its command again")
    plan = storage.read_json(storage.join(location, files.PLAN))
    settings = storage.read_json(storage.join(location, files.CONFIG))
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise InputError(f"{flag} {location}: written by another version of petseg; predict again")
    try:
        class_names = tuple(map(str, plan["classes"]))
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in plan["palette"])
        checkpoint = str(settings["checkpoint"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{flag} {location}: {files.PLAN} or {files.CONFIG} was edited; predict again") from error

    def read(name: str) -> pa.Table:
        rows = _read_shard(storage.join(location, name), _COLUMNS)
        # A dictionary, because the name is the same in all rows.
        shard = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows.num_rows, np.int32)), pa.array([name]))
        return rows.append_column("shard", shard)

    shards = sorted(name for name in names if files.PREDICTION_SHARD.fullmatch(name))
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = pa.concat_tables(map_ahead(pool, read, shards, _THREADS))
    with_mask = rows.filter(rows["unsure"].is_valid())
    if not with_mask.num_rows:
        raise InputError(f"{flag} {location}: no photo of it has a mask")
    failed = rows.num_rows - with_mask.num_rows
    return FinishedPrediction(location, with_mask, failed, class_names, palette, checkpoint)


def read_masks(prediction: FinishedPrediction, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the mask of each of these rows, uint8 (H, W). Each shard is read once if the indices are sorted.

    Raises `InputError` if a row is not as a prediction writes it, or cannot be read.
    """
    rows = prediction.rows.select(["shard", "id"]).take(pa.array(indices, pa.int64())).to_pylist()
    for shard, group in itertools.groupby(rows, key=lambda row: row["shard"]):
        location = storage.join(prediction.location, shard)
        ids = [row["id"] for row in group]
        unsafe = [row_id for row_id in ids if safe_id(row_id) != row_id]
        if unsafe:  # it will name a file
            raise InputError(f"{location}: {unsafe[0]!r} is not an id; was it edited?")
        table = _read_shard(location, ["id", "mask_png"], filters=[("id", "in", ids)])
        masks = dict(zip(table["id"].to_pylist(), table["mask_png"].to_pylist(), strict=True))
        for row_id in ids:
            yield _decode_mask(masks[row_id] or b"", len(prediction.class_names), f"{location}: the mask of {row_id}")


def _read_shard(location: str, columns: list[str], filters: list[Any] | None = None) -> pa.Table:
    """Return columns of a shard. Raises `InputError` if it cannot be read."""
    with storage.as_input_error(f"{location}: cannot be read"):
        try:
            with storage.open_file(location) as file:
                return pq.read_table(file, columns=columns, filters=filters).replace_schema_metadata(None)
        except pa.ArrowException as error:
            raise InputError(f"{location}: broken ({storage.reason(error)}); predict again") from error


def _decode_mask(content: bytes, num_classes: int, what: str) -> np.ndarray:
    """Return the class ids of a mask, uint8 (H, W). Raises `InputError`, beginning with `what`, if it is no mask."""
    try:
        opened = open_image(content, MAX_PIXELS)
        opened.load()
    except DecodeError as error:
        raise InputError(f"{what} is broken: {error}; predict again") from error
    class_ids = np.asarray(opened.image)
    if class_ids.ndim != 2 or class_ids.dtype != np.uint8 or class_ids.max() >= num_classes:
        raise InputError(f"{what} has other values than class ids; was it edited?")
    return class_ids
