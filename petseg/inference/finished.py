"""Read a finished prediction: which photos it has, how unsure each mask is, and the masks of some of them."""

import itertools
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from petseg import files, storage
from petseg.config.base import MAX_PIXELS
from petseg.data.ids import safe_id
from petseg.data.image_file import DecodeError, open_image
from petseg.errors import InputError
from petseg.lookahead import map_ahead

_COLUMNS = ["id", "image", "class_pixels", "unsure"]
_SHARD = re.compile(r"part-\d{5,}-of-\d{5,}\.parquet")
_THREADS = 16


@dataclass(frozen=True)
class FinishedPrediction:
    """The photos of a finished prediction that have a mask."""

    location: str
    rows: pa.Table
    """Columns `id`, `image`, `class_pixels`, `unsure` and `shard` (the name of the shard's file), in order of the ids.
    """
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
    try:
        class_names = tuple(map(str, plan["classes"]))
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in plan["palette"])
        checkpoint = str(settings["checkpoint"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{flag} {location}: of an earlier version; predict again into another folder") from error

    def read(name: str) -> pa.Table:
        with storage.open_file(storage.join(location, name)) as file:
            rows = pq.read_table(file, columns=_COLUMNS).replace_schema_metadata(None)
        return rows.append_column("shard", pa.array([name] * rows.num_rows, pa.string()))

    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    with storage.as_input_error(f"{flag} {location}: cannot be read"), ThreadPoolExecutor(_THREADS) as pool:
        rows = pa.concat_tables(map_ahead(pool, read, shards, _THREADS))
    rows = rows.filter(rows["unsure"].is_valid())
    if not rows.num_rows:
        raise InputError(f"{flag} {location}: no photo of it has a mask")
    unsafe = next((row_id for row_id in rows["id"].to_pylist() if safe_id(row_id) != row_id), None)
    if unsafe is not None:  # it will name a file
        raise InputError(f"{flag} {location}: {unsafe!r} is not an id; was it edited?")
    return FinishedPrediction(location, rows, class_names, palette, checkpoint)


def read_masks(prediction: FinishedPrediction, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the mask of each of these rows, uint8 (H, W). Each shard is read once if the indices are sorted.

    Raises `InputError` if a mask is not as a prediction writes it.
    """
    rows = prediction.rows.select(["shard", "id"]).take(pa.array(indices, pa.int64())).to_pylist()
    for shard, group in itertools.groupby(rows, key=lambda row: row["shard"]):
        location = storage.join(prediction.location, shard)
        ids = [row["id"] for row in group]
        with storage.open_file(location) as file:
            table = pq.read_table(file, columns=["id", "mask_png"], filters=[("id", "in", ids)])
        masks = dict(zip(table["id"].to_pylist(), table["mask_png"].to_pylist(), strict=True))
        for row_id in ids:
            try:
                opened = open_image(masks[row_id], MAX_PIXELS)
                opened.load()
            except DecodeError as error:
                raise InputError(f"{location}: the mask of {row_id} is broken: {error}; predict again") from error
            yield np.asarray(opened.image)
