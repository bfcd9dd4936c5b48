"""Provide one rank's rows of the decoded pairs as batches on its device, shuffled by index.

The rows of a rank and their order follow from (rows, seed, epoch, rank, world size) alone, not from the available
memory. A worker that keeps its rows on the device and one that streams them, block by block, give the same batches.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from petseg.data import decode
from petseg.errors import UnavailableError
from petseg.lookahead import map_ahead
from petseg.pipelines.datasets import unavailable_reason
from petseg.pipelines.decode import Decoded, row_bytes

WINDOW_BYTES = 2**30
"""Shuffle-window size in bytes. Streaming keeps about two windows in memory."""

Batch = tuple[Tensor, Tensor]
"""Photos, uint8 (n, 3, H, W), channels last in memory, and class ids, uint8 (n, H, W), on the worker's device."""


class RankData:
    """The rows of one rank, as batches on its device.

    `rank` of `world_size` owns the rows from `rank * n // world_size` up to the first row of the next rank. Rows of up
    to `budget_bytes` in total stay on the device. More than that is streamed from the object store in every epoch.
    """

    def __init__(self, decoded: Decoded, rank: int, world_size: int, device: torch.device, budget_bytes: float) -> None:
        self._decoded = decoded
        self._device = device
        self._starts = np.cumsum([0, *decoded.block_rows])
        self._first = rank * decoded.num_rows // world_size
        self.num_rows = (rank + 1) * decoded.num_rows // world_size - self._first
        self.smallest = decoded.num_rows // world_size
        """Number of rows of the rank that has the fewest."""
        self._rank = rank
        self._resident: tuple[Tensor, Tensor] | None = None
        num_bytes = self.num_rows * row_bytes(decoded.image_size)
        self.resident_bytes = num_bytes if num_bytes <= budget_bytes else 0
        """Bytes kept on the device; 0 when streaming."""
        if num_bytes <= budget_bytes:
            photos, masks = self._load(np.arange(self.num_rows))
            self._resident = photos.to(device), masks.to(device)

    def train_batches(
        self, batch_size: int, seed: int, epoch: int, *, skip: int = 0, fixed_batches: bool = False
    ) -> Iterator[Batch]:
        """Yield `smallest // batch_size` batches of `batch_size` rows, without the first `skip` of them.

        Every rank therefore yields the same number of batches. The order depends on `epoch`. The rows at its end that
        do not fill a batch are skipped in this epoch. With `fixed_batches` each batch holds neighbouring rows and is
        the same in all epochs; only the order of the batches differs.
        """
        generator = np.random.default_rng((seed, self._rank, epoch))
        windows = self._windows(generator, batch_size if fixed_batches else None)
        steps = self.smallest // batch_size - skip
        for _, batch in zip(range(steps), self._batches(_after(windows, skip * batch_size), batch_size), strict=False):
            yield batch

    def take_rows(self, rows: np.ndarray) -> Batch:
        """Return the rows with the given numbers, in that order."""
        return self._to_device(*self._load(rows))

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield every row once, in order. The last batch may be shorter."""
        window_rows = self._window_rows()
        rows = np.arange(self.num_rows)
        windows = [rows[start : start + window_rows] for start in range(0, self.num_rows, window_rows)]
        return self._batches(windows, batch_size)

    def _windows(self, generator: np.random.Generator, batch_size: int | None) -> list[np.ndarray]:
        """Return the rows of this rank in the order of one epoch, in windows that fit into memory.

        The blocks are shuffled, and then the rows within each window of blocks. With `batch_size`, whole batches are
        shuffled instead.
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
        return max(1, WINDOW_BYTES // row_bytes(self._decoded.image_size))

    def _batches(self, windows: list[np.ndarray], batch_size: int) -> Iterator[Batch]:
        """Yield the rows of the windows in order, in batches that may cross the end of a window."""
        if self._resident is not None:
            photos, masks = self._resident
            order = torch.from_numpy(np.concatenate([*windows, np.arange(0)])).to(self._device)
            for rows in order.split(batch_size) if len(order) else ():
                yield photos[rows].permute(0, 3, 1, 2), masks[rows]
            return
        left = self._load(np.arange(0))
        with ThreadPoolExecutor(1) as loader:
            for photos, masks in map_ahead(loader, self._load, windows, 1):
                photos, masks = torch.cat([left[0], photos]), torch.cat([left[1], masks])
                whole = len(photos) // batch_size * batch_size
                for start in range(0, whole, batch_size):
                    yield self._to_device(photos[start : start + batch_size], masks[start : start + batch_size])
                left = photos[whole:], masks[whole:]
        if len(left[0]):
            yield self._to_device(*left)

    def _to_device(self, photos_nhwc: Tensor, masks: Tensor) -> Batch:
        if self._device.type == "cuda":  # the host need not wait for a copy from pinned memory
            photos_nhwc, masks = photos_nhwc.pin_memory(), masks.pin_memory()
        photos_nhwc = photos_nhwc.to(self._device, non_blocking=True)
        return photos_nhwc.permute(0, 3, 1, 2), masks.to(self._device, non_blocking=True)

    def _load(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return rows of this rank in the given order: uint8 (n, H, W, 3) and (n, H, W), on the CPU."""
        height, width = self._decoded.image_size
        photos = np.empty((len(rows), height, width, 3), np.uint8)
        masks = np.empty((len(rows), height, width), np.uint8)
        block_of_row = np.searchsorted(self._starts, rows + self._first, side="right") - 1
        for number in np.unique(block_of_row):
            block: pa.Table = ray.get(self._decoded.blocks[number])
            if reason := unavailable_reason(block):  # lost with its node, decoded again while storage was unavailable
                raise UnavailableError(reason)
            indices = np.flatnonzero(block_of_row == number)
            inside = rows[indices] + self._first - self._starts[number]
            photos[indices] = decode.from_column(block["image"], (height, width, 3))[inside]
            masks[indices] = decode.from_column(block["mask"], (height, width))[inside]
        return torch.from_numpy(photos), torch.from_numpy(masks)


def _after(windows: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Return the windows without their first `count` rows."""
    left = []
    for window in windows:
        left += [window[count:]] if len(window) > count else []
        count = max(0, count - len(window))
    return left
