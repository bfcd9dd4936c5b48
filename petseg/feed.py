"""From files to each worker's batches: decoded once through Ray Data, kept as Arrow blocks, shuffled by index.

The rows are put into a seeded order before they are decoded, so a worker's share is a run of neighbouring rows: random
in content, yet in few blocks. Which rows a rank sees in which order follows from (rows, seed, epoch, rank, world size)
alone, not from how much memory there is: a worker that keeps its share on the device and one that streams it, block by
block, give the same batches.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.exceptions
import torch
from torch import Tensor

from petseg import cluster, images, manifest, prepared
from petseg.config import InputError, JobError, Resize, UnavailableError
from petseg.labels import LabelMap
from petseg.prepared import Prepared

BLOCK_BYTES = 8 * 2**20
"""Size of a block: 81 pairs of 160 × 160, a quarter of a second to decode. The order of the data depends on it."""

WINDOW_BYTES = 2**30
"""Rows that are shuffled among each other, once their blocks have been; what streaming holds at a time, about twice."""

Batch = tuple[Tensor, Tensor]
"""Photos uint8 (n, 3, H, W), channels last in memory, and class ids uint8 (n, H, W), on the worker's device."""


@dataclass(frozen=True)
class Decoded:
    """Decoded pairs in Ray's object store, in the manifest's order; small, so it can be passed to the workers."""

    blocks: list[Any]
    """Object references of Arrow tables: `image` and `mask`, as raw bytes of fixed size, among other columns."""
    rows: tuple[int, ...]
    """Rows of each block."""
    image_size: tuple[int, int]
    class_pixels: tuple[int, ...]
    """Pixels of each class in all masks, as they were decoded."""

    @property
    def num_rows(self) -> int:
        return sum(self.rows)


def decode(
    manifests: list[pa.Table], image_size: tuple[int, int], label_map: LabelMap, resize: Resize = "antialias"
) -> list[Decoded]:
    """Read and decode all pairs of some manifests on the cluster, once.

    Raises `InputError`, naming the files, where a pair cannot be used.
    """
    read = functools.partial(decode_rows, image_size=image_size, label_map=label_map, resize=resize)
    decoded = _in_blocks(manifests, read, image_size, label_map.num_classes, _refuse_bad)
    _refuse_unlabelled(decoded, manifests, f"see --label-map (now {label_map})")
    return decoded


def load(dataset: Prepared, manifests: list[pa.Table]) -> list[Decoded]:
    """Read the pairs of some parts of a prepared set's manifest on the cluster: what `decode` gives of their files.

    Raises `InputError`, naming the file, where one cannot be read.
    """
    settings = dataset.settings
    located = [prepared.locate(dataset, rows) for rows in manifests]
    read = functools.partial(prepared.read_rows, image_size=settings.image_size)
    decoded = _in_blocks(located, read, settings.image_size, len(settings.class_names), _refuse_unread)
    _refuse_unlabelled(decoded, manifests, f"prepare them again with another --label-map (was {settings.label_map})")
    return decoded


def _refuse_bad(failures: list[str]) -> InputError:
    return manifest.refuse_bad(failures, "Mend or remove them")


def _refuse_unread(failures: list[str]) -> InputError:
    return InputError(f"{failures[0]}; {prepared.REMEDY}")


def _refuse_unlabelled(decoded: list[Decoded], manifests: list[pa.Table], remedy: str) -> None:
    for part, rows in zip(decoded, manifests, strict=True):
        if not any(part.class_pixels):
            raise InputError(f"--masks: every pixel is ignored in {rows['mask'][0]} and all the others; {remedy}")


def _in_blocks(
    parts: list[pa.Table],
    read: Callable[[pa.Table], pa.Table],
    image_size: tuple[int, int],
    num_classes: int,
    refuse: Callable[[list[str]], InputError],
) -> list[Decoded]:
    """`read` a piece of a part for each block, on the cluster; `refuse` says what of the errors in their rows.

    Raises `JobError` where storage does not answer.
    """
    block_rows = max(1, BLOCK_BYTES // _row_bytes(image_size))
    pieces = [[rows.slice(i, block_rows) for i in range(0, rows.num_rows, block_rows)] for rows in parts]
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = None  # one piece becomes one block, however large a pair is
    context.op_resource_reservation_enabled = False  # for those who take the blocks; with two cores only one worked
    decoded = ray.data.from_arrow([piece for of_part in pieces for piece in of_part]).map_batches(
        functools.partial(_read_or_refusal, read=read),
        batch_format="pyarrow",
        batch_size=None,
        zero_copy_batch=True,
    )
    blocks: list[Any] = decoded.materialize().to_arrow_refs()
    assert len(blocks) == sum(map(len, pieces))
    try:
        surveys = ray.get([_survey.remote(block) for block in blocks])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnavailableError):
            raise JobError(str(error.cause)) from error
        raise
    failures = [failure for found, _ in surveys for failure in found]
    if failures:
        raise refuse(failures)
    result, following = [], iter(zip(blocks, surveys, strict=True))
    for of_part in pieces:
        of_blocks = [next(following) for _ in of_part]
        class_pixels = np.sum([counts[:num_classes] for _, (_, counts) in of_blocks], 0)
        rows = tuple(piece.num_rows for piece in of_part)
        result.append(Decoded([block for block, _ in of_blocks], rows, image_size, tuple(class_pixels.tolist())))
    return result


def _row_bytes(image_size: tuple[int, int]) -> int:
    return image_size[0] * image_size[1] * 4  # RGB and a class id


def decode_rows(
    rows: pa.Table, image_size: tuple[int, int], label_map: LabelMap, resize: Resize = "antialias"
) -> pa.Table:
    """Rows of a manifest as `prepared.schema` has them, and `error`: where a pair is bad, the reason, and null in all
    else but `id`. Raises `UnavailableError` where storage does not answer."""
    schema = prepared.schema(image_size).append(pa.field("error", pa.string()))
    decoded = [
        {"id": row["id"], "error": error} if error else _decode_pair(row, photo, mask, image_size, label_map, resize)
        for row, photo, mask, error in manifest.read_pairs(rows, images.max_bytes(images.MAX_TRAINING_PIXELS))
    ]
    return pa.table({name: [row.get(name) for row in decoded] for name in schema.names}, schema=schema)


def _decode_pair(
    row: dict[str, str],
    photo_content: bytes,
    mask_content: bytes,
    image_size: tuple[int, int],
    label_map: LabelMap,
    resize: Resize,
) -> dict[str, object]:
    try:
        photo, class_ids = images.decode_pair(
            photo_content, mask_content, image_size, label_map, images.MAX_TRAINING_PIXELS, resize
        )
    except images.DecodeError as refused:
        return {"id": row["id"], "error": f"{row['mask' if refused.in_mask else 'image']}: {refused}"}
    pixels = {"image": photo.pixels.tobytes(), "mask": class_ids.tobytes()}
    return {"id": row["id"], "height": photo.height, "width": photo.width, **pixels}


def _read_or_refusal(rows: pa.Table, read: Callable[[pa.Table], pa.Table]) -> pa.Table:
    return cluster.or_refusal(lambda: read(rows))


@ray.remote
def _survey(block: pa.Table) -> tuple[list[str], np.ndarray]:
    """What failed in a block, and the pixels of each class id, 0 to 255, in what did not."""
    if refusal := cluster.refusal(block):
        raise UnavailableError(refusal)
    masks = block.filter(pc.field("error").is_null())["mask"]
    class_ids = images.from_column(masks, (masks.type.byte_width,))
    return block["error"].drop_null().to_pylist(), np.bincount(class_ids.ravel(), minlength=256)


class Share:
    """The rows of one rank, as batches on its device.

    `rank` of `world_size` owns the rows from `rank * n // world_size` up to where the next rank begins. Up to
    `budget_bytes` of them stay on the device; a larger share is streamed from the object store, epoch by epoch.
    """

    def __init__(self, decoded: Decoded, rank: int, world_size: int, device: torch.device, budget_bytes: float) -> None:
        self._decoded = decoded
        self._device = device
        self._starts = np.cumsum([0, *decoded.rows])
        self._first = rank * decoded.num_rows // world_size
        self.num_rows = (rank + 1) * decoded.num_rows // world_size - self._first
        self.smallest = decoded.num_rows // world_size
        """Rows of the rank that has the fewest."""
        self._rank = rank
        self._resident: tuple[Tensor, Tensor] | None = None
        share_bytes = self.num_rows * _row_bytes(decoded.image_size)
        self.resident_bytes = share_bytes if share_bytes <= budget_bytes else 0
        """What is kept on the device."""
        if share_bytes <= budget_bytes:
            photos, masks = self._load(np.arange(self.num_rows))
            self._resident = photos.to(device), masks.to(device)

    def train_batches(
        self, batch_size: int, seed: int, epoch: int, *, skip: int = 0, keep_batches: bool = False
    ) -> Iterator[Batch]:
        """`smallest // batch_size` batches of `batch_size` rows, so equally many on every rank, but for the first
        `skip`.

        The order differs with `epoch`; the rows at its end that fill no batch are left out of this epoch. With
        `keep_batches` each batch is a run of neighbouring rows, the same in all epochs, and only their order differs.
        """
        generator = np.random.default_rng((seed, self._rank, epoch))
        windows = self._windows(generator, batch_size if keep_batches else None)
        steps = self.smallest // batch_size - skip
        for _, batch in zip(range(steps), self._batches(_after(windows, skip * batch_size), batch_size), strict=False):
            yield batch

    def some(self, rows: np.ndarray) -> Batch:
        """The rows with these numbers, in that order."""
        return self._to_device(*self._load(rows))

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, in order; the last batch may be shorter."""
        window_rows = self._window_rows()
        rows = np.arange(self.num_rows)
        windows = [rows[start : start + window_rows] for start in range(0, self.num_rows, window_rows)]
        return self._batches(windows, batch_size)

    def _windows(self, generator: np.random.Generator, batch_size: int | None) -> list[np.ndarray]:
        """The rows of this share in the order of one epoch, in pieces that fit into memory.

        The blocks are shuffled, then the rows of as many blocks as make a window; or, with `batch_size`, whole batches.
        """
        if batch_size is None:
            edges = np.clip(self._starts - self._first, 0, self.num_rows)
        else:
            edges = np.arange(0, self.num_rows + 1, batch_size)
        pieces = [np.arange(start, end) for start, end in itertools.pairwise(edges) if end > start]
        windows: list[list[np.ndarray]] = [[]]
        for number in generator.permutation(len(pieces)):
            if windows[-1] and sum(map(len, windows[-1])) + len(pieces[number]) > self._window_rows():
                windows.append([])
            windows[-1].append(pieces[number])
        joined = [np.concatenate(window) for window in windows if window]
        return joined if batch_size is not None else [generator.permutation(window) for window in joined]

    def _window_rows(self) -> int:
        return max(1, WINDOW_BYTES // _row_bytes(self._decoded.image_size))

    def _batches(self, windows: list[np.ndarray], batch_size: int) -> Iterator[Batch]:
        """The rows of the windows, one window after another, in batches that take no notice of where one ends."""
        if self._resident is not None:
            photos, masks = self._resident
            order = torch.from_numpy(np.concatenate([*windows, np.arange(0)])).to(self._device)
            for rows in order.split(batch_size) if len(order) else ():
                yield photos[rows].permute(0, 3, 1, 2), masks[rows]
            return
        left = self._load(np.arange(0))
        for photos, masks in self._loaded_ahead(windows):
            photos, masks = torch.cat([left[0], photos]), torch.cat([left[1], masks])
            whole = len(photos) // batch_size * batch_size
            for start in range(0, whole, batch_size):
                yield self._to_device(photos[start : start + batch_size], masks[start : start + batch_size])
            left = photos[whole:], masks[whole:]
        if len(left[0]):
            yield self._to_device(*left)

    def _to_device(self, photos_nhwc: Tensor, masks: Tensor) -> Batch:
        if self._device.type == "cuda":  # copied from locked memory, the host need not wait for it
            photos_nhwc, masks = photos_nhwc.pin_memory(), masks.pin_memory()
        photos_nhwc = photos_nhwc.to(self._device, non_blocking=True)
        return photos_nhwc.permute(0, 3, 1, 2), masks.to(self._device, non_blocking=True)

    def _loaded_ahead(self, windows: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each window's rows; while one is used, a thread loads the next."""
        with ThreadPoolExecutor(1) as loader:
            coming = loader.submit(self._load, windows[0]) if windows else None
            for following in [*windows[1:], None]:
                assert coming is not None
                loaded = coming.result()
                coming = loader.submit(self._load, following) if following is not None else None
                yield loaded

    def _load(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows of this share, in the order given: uint8 (n, H, W, 3) and (n, H, W), on the CPU."""
        height, width = self._decoded.image_size
        photos = np.empty((len(rows), height, width, 3), np.uint8)
        masks = np.empty((len(rows), height, width), np.uint8)
        block_of_row = np.searchsorted(self._starts, rows + self._first, side="right") - 1
        for number in np.unique(block_of_row):
            block: pa.Table = ray.get(self._decoded.blocks[number])
            if refusal := cluster.refusal(block):  # lost with its node, and decoded again while storage was away
                raise UnavailableError(refusal)
            places = np.flatnonzero(block_of_row == number)
            inside = rows[places] + self._first - self._starts[number]
            photos[places] = images.from_column(block["image"], (height, width, 3))[inside]
            masks[places] = images.from_column(block["mask"], (height, width))[inside]
        return torch.from_numpy(photos), torch.from_numpy(masks)


def _after(windows: list[np.ndarray], count: int) -> list[np.ndarray]:
    """The windows without their first `count` rows."""
    left = []
    for window in windows:
        left += [window[count:]] if len(window) > count else []
        count = max(0, count - len(window))
    return left
