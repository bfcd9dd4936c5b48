"""Read a finished prediction for its report: count over a sample of shards and load the few masks that are shown."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from petseg import storage
from petseg.data import decode, visualize
from petseg.data.image_file import DecodeError
from petseg.files import MASK_FOLDER
from petseg.inference.plan import Plan

SHARDS = 100
"""Maximum number of shards to read, spread evenly over all."""

_COLUMNS = ["id", "image", "class_pixels", "confidence", "error"]
_THREADS = 16
_REASON_LETTERS = 80


@dataclass(frozen=True)
class Sample:
    """Counts over the sampled shards. `shards` is their number."""

    shards: int
    rows: pa.Table
    """Columns `id`, `image`, `class_pixels`, `confidence`, `error` and `shard` (the shard number)."""
    class_pixels: np.ndarray
    """Number of pixels of each class: int64 (C,)."""
    reasons: Counter[str]
    """Number of failed photos by the first `_REASON_LETTERS` characters of the error."""


def survey(plan: Plan, num_classes: int) -> Sample:
    """Read and count a sample of the shards. Raises `OSError` or `UnavailableError` if one cannot be read."""
    total = plan.target.num_shards
    numbers = [index * total // min(SHARDS, total) for index in range(min(SHARDS, total))]

    def read(shard: int) -> pa.Table:
        with storage.open_file(plan.target.location(shard)) as file:
            table = pq.read_table(file, columns=_COLUMNS)
        return table.append_column("shard", pa.array([shard] * table.num_rows, pa.int64()))

    with ThreadPoolExecutor(_THREADS) as pool:
        rows = pa.concat_tables(pool.map(read, numbers)).replace_schema_metadata(None)
    of_masks = rows["class_pixels"].drop_null().combine_chunks()
    class_pixels = of_masks.flatten().to_numpy().reshape(-1, num_classes).sum(0)
    reasons = Counter(reason[:_REASON_LETTERS] for reason in rows["error"].drop_null().to_pylist())
    return Sample(len(numbers), rows, class_pixels, reasons)


def render_previews(plan: Plan, rows: pa.Table, max_pixels: int) -> Iterator[tuple[dict[str, Any], bytes, bytes]]:
    """Yield (row, preview of the photo as a JPEG, its mask as a PNG) for each of the given rows of `survey`.

    Skips rows whose photo can no longer be read or has been replaced. Raises `UnavailableError` if storage does not
    answer.
    """
    for row in rows.to_pylist():
        try:
            content = storage.read(row["image"], at_most=decode.max_bytes(max_pixels))
            yield row, visualize.preview(content, max_pixels), _mask(plan, row["id"], row["shard"])
        except (DecodeError, OSError):
            continue


def _mask(plan: Plan, row_id: str, shard: int) -> bytes:
    """Return the PNG of a mask, from its own file if there is one: a shard holds the masks of many photos."""
    if plan.target.outputs.png:
        return storage.read(storage.join(plan.target.output, MASK_FOLDER, f"{row_id}.png"))
    with storage.open_file(plan.target.location(shard)) as file:
        table = pq.read_table(file, columns=["id", "mask_png"], filters=[("id", "=", row_id)])
    return table["mask_png"][0].as_py()
