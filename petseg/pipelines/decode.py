"""Decode files to blocks with Ray Data, once, and keep them as Arrow tables in Ray's object store.

Rows keep the manifest's order. Training manifests are shuffled already (`data/splits.py`), so each rank can take
neighbouring rows (`training/rank_data.py`): a random sample that lies in few blocks.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from petseg.cluster.memory import translate_out_of_memory
from petseg.config.base import MasksUpright, Resize
from petseg.data import manifest, orientation, prepared
from petseg.data.decode import from_column
from petseg.data.labels import LabelMap
from petseg.data.notes import Notes, add_notes, count_notes, note_lines
from petseg.data.prepared import Prepared
from petseg.data.tiles import Tiling
from petseg.errors import InputError, JobError, UnavailableError
from petseg.pipelines.datasets import WHOLE_BLOCKS, catch_unavailable, data_context, unavailable_reason
from petseg.pipelines.pair_rows import decode_rows

BLOCK_BYTES = 8 * 2**20
"""Size of a block in bytes: 81 pairs of 160 × 160, decoded in a quarter of a second.

Changing it changes the order of the training data.
"""

_IF_OUT_OF_MEMORY = "end other programs, or use machines with more memory"


@dataclass(frozen=True)
class Decoded:
    """Decoded pairs, or crops of them, in Ray's object store, in the manifest's order.

    This object is small, so workers can receive it.
    """

    blocks: list[Any]
    """Object references of Arrow tables. Their columns include `image` and `mask`, as raw bytes of fixed size."""
    block_rows: tuple[int, ...]
    """Number of rows of each block."""
    image_size: tuple[int, int]
    class_pixels: tuple[int, ...]
    """Number of pixels of each class in all decoded masks."""

    @property
    def num_rows(self) -> int:
        """Number of pairs, or crops, in all blocks."""
        return sum(self.block_rows)


def decode(
    parts: Mapping[str, pa.Table],
    image_size: tuple[int, int],
    label_map: LabelMap,
    resize: Resize = "antialias",
    masks_upright: MasksUpright = "auto",
    tiling: Tiling | None = None,
    seed: int = 0,
) -> list[Decoded]:
    """Read and decode all pairs on the cluster, once, and print notes on them. `parts` maps splits to manifests.

    With `tiling`, the pairs are cut into tiles: those of the split "training" at random places, which `seed`
    determines, those of the others as in a prediction. Then each block has the tiles of one pair.

    Raises `InputError`, naming the files, if a pair cannot be used, if nothing decides on `masks_upright`, or if a
    split's masks have only ignored pixels. Raises `JobError` if storage does not answer.
    """
    read = functools.partial(decode_rows, image_size=image_size, label_map=label_map, resize=resize)
    if tiling is not None:
        read = functools.partial(read, tiling=tiling, seed=seed)
        parts = {
            split: rows.append_column("random", pa.array([split == "training"] * rows.num_rows))
            for split, rows in parts.items()
        }
    step = 1 if tiling is not None else _pairs_per_block(image_size)
    pieces = _cut(parts.values(), step)
    counted = _read_blocks(pieces, read, orientation.given(masks_upright))
    _require_no_errors(counted, _bad_pairs_error)
    unclear = [index for index, (_, counts) in enumerate(counted) if counts.drawn["unclear"]]
    if unclear and masks_upright == "auto":
        drawn = sum((counts.drawn for _, counts in counted), Counter())
        upright = orientation.decide(drawn, counted[unclear[0]][1].unclear)
        again = _read_blocks([pieces[index] for index in unclear], read, upright)
        _require_no_errors(again, _bad_pairs_error)
        for index, block in zip(unclear, again, strict=True):
            counted[index] = block
    for line in note_lines(add_notes(counts.notes for _, counts in counted)):
        print(f"note: {line}")
    decoded = _collect(parts.values(), step, counted, image_size, label_map.num_classes)
    _require_labelled(decoded, parts, f"pass a --label-map that maps their values to classes (now {label_map})")
    return decoded


def load(dataset: Prepared, parts: Mapping[str, pa.Table]) -> list[Decoded]:
    """Read pairs of a prepared set on the cluster, and return one `Decoded` per split, as `decode` does.

    `parts` maps splits to rows of the set's manifest. Raises `InputError`, naming the file, if a shard cannot be read
    or a split's masks have only ignored pixels. Raises `JobError` if storage does not answer.
    """
    settings = dataset.settings
    located = [prepared.locate(dataset, rows) for rows in parts.values()]
    read = functools.partial(prepared.read_rows, image_size=settings.image_size)
    step = _pairs_per_block(settings.image_size)
    counted = _read_blocks(_cut(located, step), read)
    _require_no_errors(counted, _unreadable_error)
    decoded = _collect(located, step, counted, settings.image_size, len(settings.class_names))
    _require_labelled(decoded, parts, f"prepare the set again with another --label-map (was {settings.label_map})")
    return decoded


def _bad_pairs_error(failures: list[str]) -> InputError:
    return manifest.unusable_pairs_error(failures, "fix or remove them")


def _unreadable_error(failures: list[str]) -> InputError:
    return InputError(f"{failures[0]}; {prepared.REMEDY}")


def _require_labelled(decoded: list[Decoded], parts: Mapping[str, pa.Table], remedy: str) -> None:
    for part, (split, rows) in zip(decoded, parts.items(), strict=True):
        if not any(part.class_pixels):
            raise InputError(
                f"every pixel of all {rows.num_rows} masks of the {split} split is ignored, such as in "
                f"{rows['mask'][0]}; {remedy}"
            )


class _BlockCounts(NamedTuple):
    """What the driver needs to know of a block."""

    rows: int
    errors: list[str]
    class_pixels: np.ndarray
    """Number of pixels of each class id, 0 to 255, in the good rows: int64 (256,)."""
    drawn: Counter[str]
    """Numbers of masks by how they were drawn; see `pairs.drawn`."""
    unclear: str
    """Id of the first pair whose mask is unclear; "" if there is none."""
    notes: Notes


_Counted = list[tuple[Any, _BlockCounts]]
"""Reference to each block in Ray's object store, and its counts."""


def _pairs_per_block(image_size: tuple[int, int]) -> int:
    return max(1, BLOCK_BYTES // row_bytes(image_size))


def _cut(parts: Iterable[pa.Table], step: int) -> list[pa.Table]:
    """Cut manifests into pieces of `step` pairs, one for each block."""
    return [rows.slice(i, step) for rows in parts for i in range(0, rows.num_rows, step)]


def _read_blocks(pieces: list[pa.Table], read: Callable[..., pa.Table], masks_upright: bool | None = None) -> _Counted:
    """Call `read` on the cluster for each piece of a manifest, and make each result a block.

    Raises `JobError` if storage does not answer or the memory is full.
    """
    if masks_upright is not None:
        read = functools.partial(read, masks_upright=masks_upright)
    try:
        with translate_out_of_memory(_IF_OUT_OF_MEMORY):
            blocks = _materialize(pieces, functools.partial(_read_or_unavailable, read=read))
            return list(zip(blocks, ray.get([_count_block.remote(block) for block in blocks]), strict=True))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnavailableError):
            raise JobError(str(error.cause)) from error
        raise


def _materialize(pieces: list[pa.Table], work: Callable[[pa.Table], pa.Table]) -> list[Any]:
    """Return a reference to the result of `work` for each piece, in order."""
    # Ray Data would reserve cores for consumers of the blocks, so that only one of two cores decoded.
    with data_context(op_resource_reservation_enabled=False) as context:
        context.execution_options.preserve_order = True
        worked = ray.data.from_arrow(pieces).map_batches(work, **WHOLE_BLOCKS)
    blocks: list[Any] = worked.materialize().to_arrow_refs()
    assert len(blocks) == len(pieces)
    return blocks


def _require_no_errors(counted: _Counted, to_error: Callable[[list[str]], InputError]) -> None:
    failures = [failure for _, counts in counted for failure in counts.errors]
    if failures:
        raise to_error(failures)


def _collect(
    parts: Iterable[pa.Table], step: int, counted: _Counted, image_size: tuple[int, int], num_classes: int
) -> list[Decoded]:
    """Return the blocks of each manifest that `_cut` has cut."""
    result, following = [], iter(counted)
    for rows in parts:
        blocks = list(itertools.islice(following, len(_cut([rows], step))))
        class_pixels = np.sum([counts.class_pixels[:num_classes] for _, counts in blocks], 0)
        block_rows = tuple(counts.rows for _, counts in blocks)
        result.append(Decoded([block for block, _ in blocks], block_rows, image_size, tuple(class_pixels.tolist())))
    return result


def row_bytes(image_size: tuple[int, int]) -> int:
    """Return the bytes of a row: RGB and a class id for each pixel of a pair, or of a crop."""
    return image_size[0] * image_size[1] * 4


def _read_or_unavailable(rows: pa.Table, read: Callable[[pa.Table], pa.Table]) -> pa.Table:
    return catch_unavailable(lambda: read(rows))


@ray.remote
def _count_block(block: pa.Table) -> _BlockCounts:
    if reason := unavailable_reason(block):
        raise UnavailableError(reason)
    masks = block["mask"].drop_null()
    class_ids = from_column(masks, (masks.type.byte_width,))
    errors = block["error"].drop_null().to_pylist()
    class_pixels = np.zeros(256, np.int64)
    for of_row in class_ids:  # one at a time, because bincount makes 8 bytes of each
        class_pixels += np.bincount(of_row.ravel(), minlength=256)
    if "drawn" not in block.column_names:  # a prepared set
        return _BlockCounts(block.num_rows, errors, class_pixels, Counter(), "", {})
    ids, drawn = block["id"].to_pylist(), block["drawn"].to_pylist()
    unclear = next((row_id for row_id, how in zip(ids, drawn, strict=True) if how == "unclear"), "")
    notes = count_notes(ids, block["notes"].to_pylist())
    return _BlockCounts(block.num_rows, errors, class_pixels, Counter(filter(None, drawn)), unclear, notes)
