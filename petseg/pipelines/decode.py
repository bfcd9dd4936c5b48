"""Decode files to blocks with Ray Data, once, and keep them as Arrow tables in Ray's object store.

Rows keep the manifest's order. Training manifests are shuffled already (`data/splits.py`), so each rank can take
neighbouring rows (`training/rank_data.py`): a random sample that lies in few blocks.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.exceptions

from petseg.config.base import MAX_PIXELS, Resize
from petseg.data import manifest, prepared
from petseg.data.decode import from_column, max_bytes
from petseg.data.image_file import DecodeError
from petseg.data.labels import LabelMap
from petseg.data.pairs import decode_pair
from petseg.data.prepared import Prepared
from petseg.errors import InputError, JobError, UnavailableError
from petseg.inference import crash_guard
from petseg.pipelines.datasets import WHOLE_BLOCKS, catch_unavailable, data_context, unavailable_reason

BLOCK_BYTES = 8 * 2**20
"""Size of a block in bytes: 81 pairs of 160 × 160, decoded in a quarter of a second.

Changing it changes the order of the training data.
"""


_OUT_OF_MEMORY = "decoding the pair runs out of memory; shrink its files, or use a larger machine"


@dataclass(frozen=True)
class Decoded:
    """Decoded pairs in Ray's object store, in the manifest's order. This object is small, so workers can receive it."""

    blocks: list[Any]
    """Object references of Arrow tables. Their columns include `image` and `mask`, as raw bytes of fixed size."""
    block_rows: tuple[int, ...]
    """Number of rows of each block."""
    image_size: tuple[int, int]
    class_pixels: tuple[int, ...]
    """Number of pixels of each class in all decoded masks."""

    @property
    def num_rows(self) -> int:
        """Return the number of pairs in all blocks."""
        return sum(self.block_rows)


def decode(
    manifests: list[pa.Table], image_size: tuple[int, int], label_map: LabelMap, resize: Resize = "antialias"
) -> list[Decoded]:
    """Read and decode all pairs of the manifests on the cluster, once.

    Raises `InputError`, naming the files, if a pair cannot be used or a manifest's masks have only ignored pixels.
    Raises `JobError` if storage does not answer.
    """
    read = functools.partial(decode_rows, image_size=image_size, label_map=label_map, resize=resize)
    decoded = _in_blocks(manifests, read, image_size, label_map.num_classes, _bad_pairs_error)
    _require_labelled(decoded, manifests, f"pass a --label-map that maps their values to classes (now {label_map})")
    return decoded


def load(dataset: Prepared, manifests: list[pa.Table]) -> list[Decoded]:
    """Read pairs of a prepared set on the cluster, and return one `Decoded` per manifest, as `decode` does.

    Each of `manifests` holds rows of the set's manifest. Raises `InputError`, naming the file, if a shard cannot be
    read or a manifest's masks have only ignored pixels. Raises `JobError` if storage does not answer.
    """
    settings = dataset.settings
    located = [prepared.locate(dataset, rows) for rows in manifests]
    read = functools.partial(prepared.read_rows, image_size=settings.image_size)
    decoded = _in_blocks(located, read, settings.image_size, len(settings.class_names), _unreadable_error)
    _require_labelled(decoded, manifests, f"prepare the set again with another --label-map (was {settings.label_map})")
    return decoded


def _bad_pairs_error(failures: list[str]) -> InputError:
    return manifest.unusable_pairs_error(failures, "fix or remove them")


def _unreadable_error(failures: list[str]) -> InputError:
    return InputError(f"{failures[0]}; {prepared.REMEDY}")


def _require_labelled(decoded: list[Decoded], manifests: list[pa.Table], remedy: str) -> None:
    for part, rows in zip(decoded, manifests, strict=True):
        if not any(part.class_pixels):
            raise InputError(
                f"every pixel of all {rows.num_rows} masks of a split is ignored, such as in {rows['mask'][0]}; "
                f"{remedy}"
            )


def _in_blocks(
    parts: list[pa.Table],
    read: Callable[[pa.Table], pa.Table],
    image_size: tuple[int, int],
    num_classes: int,
    to_error: Callable[[list[str]], InputError],
) -> list[Decoded]:
    """Call `read` on the cluster for each piece of a part, and make each result a block.

    If rows have errors, raises the exception that `to_error` makes of them. Raises `JobError` if storage does not
    answer.
    """
    step = max(1, BLOCK_BYTES // row_bytes(image_size))
    pieces = [[rows.slice(i, step) for i in range(0, rows.num_rows, step)] for rows in parts]
    # Ray Data would reserve cores for consumers of the blocks, so that only one of two cores decoded.
    with data_context(op_resource_reservation_enabled=False) as context:
        context.execution_options.preserve_order = True
        decoded = ray.data.from_arrow([piece for of_part in pieces for piece in of_part]).map_batches(
            functools.partial(_read_or_unavailable, read=read), **WHOLE_BLOCKS
        )
    blocks: list[Any] = decoded.materialize().to_arrow_refs()
    assert len(blocks) == sum(map(len, pieces))
    try:
        block_counts = ray.get([_count_block.remote(block) for block in blocks])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnavailableError):
            raise JobError(str(error.cause)) from error
        raise
    failures = [failure for errors, _ in block_counts for failure in errors]
    if failures:
        raise to_error(failures)
    result, following = [], iter(zip(blocks, block_counts, strict=True))
    for of_part in pieces:
        of_blocks = [next(following) for _ in of_part]
        class_pixels = np.sum([counts[:num_classes] for _, (_, counts) in of_blocks], 0)
        rows = tuple(piece.num_rows for piece in of_part)
        result.append(Decoded([block for block, _ in of_blocks], rows, image_size, tuple(class_pixels.tolist())))
    return result


def row_bytes(image_size: tuple[int, int]) -> int:
    """Return the bytes of a decoded pair: RGB and a class id for each pixel."""
    return image_size[0] * image_size[1] * 4


def decode_rows(
    rows: pa.Table, image_size: tuple[int, int], label_map: LabelMap, resize: Resize = "antialias"
) -> pa.Table:
    """Decode rows of a manifest to rows of `prepared.schema` with the column `error` added.

    A bad pair has the reason in `error` and null in all other columns except `id`.

    Raises `UnavailableError` if storage does not answer.
    """
    schema = prepared.schema(image_size).append(pa.field("error", pa.string()))
    decode_one = functools.partial(_decode_row, image_size=image_size, label_map=label_map, resize=resize)
    decoded = []
    for pair in manifest.read_pairs(rows, max_bytes(MAX_PIXELS)):
        if_died: dict[str, object] = {"id": pair[0]["id"], "error": f"{pair[0]['image']}: {_OUT_OF_MEMORY}"}
        decoded.append(crash_guard.run_with_retry(decode_one, pair, if_died))
    return pa.table({name: [row.get(name) for row in decoded] for name in schema.names}, schema=schema)


def _decode_row(
    pair: tuple[dict[str, str], bytes, bytes, str], image_size: tuple[int, int], label_map: LabelMap, resize: Resize
) -> dict[str, object]:
    row, photo_content, mask_content, error = pair
    if error:
        return {"id": row["id"], "error": error}
    try:
        photo, class_ids = decode_pair(photo_content, mask_content, image_size, label_map, MAX_PIXELS, resize)
    except DecodeError as error:
        return {"id": row["id"], "error": f"{row['mask' if error.in_mask else 'image']}: {error}"}
    pixels = {"image": photo.pixels.tobytes(), "mask": class_ids.tobytes()}
    return {"id": row["id"], "height": photo.height, "width": photo.width, **pixels}


def _read_or_unavailable(rows: pa.Table, read: Callable[[pa.Table], pa.Table]) -> pa.Table:
    return catch_unavailable(lambda: read(rows))


@ray.remote
def _count_block(block: pa.Table) -> tuple[list[str], np.ndarray]:
    """Return the errors of a block, and the number of pixels of each class id, 0 to 255, in its good rows."""
    if reason := unavailable_reason(block):
        raise UnavailableError(reason)
    masks = block.filter(pc.field("error").is_null())["mask"]
    class_ids = from_column(masks, (masks.type.byte_width,))
    return block["error"].drop_null().to_pylist(), np.bincount(class_ids.ravel(), minlength=256)
