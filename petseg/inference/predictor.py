"""The predictor: photos in, masks at the original size out. No Ray and no files, so that it runs bare.

The network gives probabilities at its own size, which are enlarged bilinearly to the photo's; a pixel's class is the
most probable one there. A large photo may be cut into overlapping tiles, each treated as a photo, and blended.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from petseg.config.base import Precision, Resize
from petseg.data import decode
from petseg.data.decode import Photo
from petseg.models import precision
from petseg.models.unet import UNet, fold_batch_norms

STRIP_VALUES = 3 * 2**20
"""Probabilities at the original size that are worked on at a time: what keeps the memory for a large photo small."""


@dataclass(frozen=True)
class Mask:
    """What the network says of one photo."""

    class_ids: np.ndarray
    """uint8 (H, W) at the photo's original, upright size."""

    class_pixels: list[int]
    """Pixels of each class."""

    confidence: float
    """Mean over the pixels of the probability of the class that won."""

    probabilities: np.ndarray | None
    """uint8 (C, H, W), 255 times the probability of each class; None where it was not asked for."""


@dataclass(frozen=True)
class Prediction:
    """What the network says of one photo at its own size; `mask` makes of it, in any thread, what is kept."""

    probabilities: Tensor
    """float32 (C, h, w), on the network's device."""

    height: int
    width: int
    """Of the mask: the photo's original, upright size."""

    keep_probabilities: bool

    @torch.inference_mode()
    def mask(self) -> Mask:
        """The mask at the photo's size. Beside it, only a strip of rows is held at that size."""
        canvas = _Canvas(len(self.probabilities), self.height, self.width, self.keep_probabilities)
        for top, strip in enlarge(self.probabilities, self.height, self.width):
            canvas.put(top, strip)
        return canvas.mask()


class Predictor:
    """A network on a device, with the number of photos it takes at a time.

    On a CPU, `threads` batches run side by side. If each has one thread of torch (`torch.set_num_threads(1)`), that is
    faster than all threads on one batch, loses nothing where other processes want the cores, and gives the same bits
    however many cores there are.
    """

    def __init__(
        self,
        model: UNet,
        device: torch.device,
        batch_size: int,
        size_hw: tuple[int, int],
        arithmetic: Precision = "auto",
        *,
        resize: Resize = "antialias",
        threads: int = 1,
        probabilities: bool = False,
    ) -> None:
        folded = fold_batch_norms(model)
        self._model = folded.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._device = device
        self._batch_size = batch_size
        self._size_hw = size_hw
        self._resize: Resize = resize
        self._arithmetic: Precision = precision.resolve(arithmetic, device)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._keep_probabilities = probabilities
        self._num_classes = model.head.out_channels

    def __call__(self, photos: list[Photo]) -> Iterator[Prediction]:
        """One prediction per photo, in order; a few batches ahead of those that were asked for.

        The photos are decoded at the network's size.
        """
        batches = self._run([partial(_pixels, photo) for photo in photos])
        for photo, probabilities in zip(photos, batches, strict=True):
            yield Prediction(probabilities, photo.height, photo.width, self._keep_probabilities)

    @torch.inference_mode()
    def tiled(self, picture: Image.Image, tile_hw: tuple[int, int], overlap: int) -> Mask:
        """The mask of a whole photo, from tiles of `tile_hw` of its pixels that overlap by at least `overlap`.

        Where tiles overlap, their probabilities are averaged, each weighted by a tent that falls off towards the
        tile's edges. Beside the photo only one row of tiles is held at a time.
        """
        width, height = picture.size
        tile_h, tile_w = min(tile_hw[0], height), min(tile_hw[1], width)
        tops, lefts = tile_starts(height, tile_h, overlap), tile_starts(width, tile_w, overlap)
        falloff_h, falloff_w = _tent(tile_h, overlap, self._device), _tent(tile_w, overlap, self._device)
        weight = falloff_h[:, None] * falloff_w
        weights_x = torch.zeros(width, device=self._device)
        for left in lefts:
            weights_x[left : left + tile_w] += falloff_w
        row = torch.zeros(self._num_classes, tile_h, width, device=self._device)  # of tiles, with what is above
        weights_y = torch.zeros(tile_h, device=self._device)
        canvas = _Canvas(self._num_classes, height, width, self._keep_probabilities)
        cut = partial(decode.cut, picture, tile_hw=(tile_h, tile_w), size_hw=self._size_hw, resize=self._resize)
        predicted = self._run([partial(cut, top, left) for top in tops for left in lefts])
        for top, following in zip(tops, [*tops[1:], height], strict=True):
            for left in lefts:
                for below, strip in enlarge(next(predicted), tile_h, tile_w):
                    rows = slice(below, below + strip.shape[1])
                    row[:, rows, left : left + tile_w] += strip * weight[rows]
            weights_y += falloff_h
            done = following - top
            for below in range(0, done, strip_rows(self._num_classes, width)):
                rows = slice(below, min(done, below + strip_rows(self._num_classes, width)))
                canvas.put(top + below, row[:, rows] / (weights_y[rows, None] * weights_x))
            kept = tile_h - done
            for sums, axis in ((row, 1), (weights_y, 0)):
                sums.narrow(axis, 0, kept).copy_(sums.narrow(axis, done, kept).clone())
                sums.narrow(axis, kept, done).zero_()
        return canvas.mask()

    def _run(self, pixels: list[Callable[[], np.ndarray]]) -> Iterator[Tensor]:
        """Probabilities float32 (C, H, W), on the device, for each of some photos or tiles at the network's size, which
        are made when their turn comes.
        """
        batches = (pixels[i : i + self._batch_size] for i in range(0, len(pixels), self._batch_size))
        running = deque()
        for batch in batches:
            running.append(self._pool.submit(self._forward, batch))
            if len(running) > self._threads:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()

    @torch.inference_mode()
    def _forward(self, batch: Iterable[Callable[[], np.ndarray]]) -> Tensor:
        pixels = torch.from_numpy(np.stack([make() for make in batch])).to(self._device)
        with precision.autocast(self._arithmetic, self._device):
            logits = self._model(pixels.permute(0, 3, 1, 2))
        return logits.float().softmax(1)


def _pixels(photo: Photo) -> np.ndarray:
    return photo.pixels


class _Canvas:
    """A mask at the original size that is made strip by strip."""

    def __init__(self, num_classes: int, height: int, width: int, keep_probabilities: bool) -> None:
        self._class_ids = np.empty((height, width), np.uint8)
        self._kept = np.empty((num_classes, height, width), np.uint8) if keep_probabilities else None
        self._num_classes = num_classes
        self._highest: list[Tensor] = []

    def put(self, top: int, probabilities: Tensor) -> None:
        """The rows from `top` on: float32 (C, rows, W)."""
        rows = slice(top, top + probabilities.shape[1])
        highest, class_ids = most_probable(probabilities)
        self._class_ids[rows] = class_ids.cpu().numpy()
        self._highest.append(highest.sum(dtype=torch.float64))
        if self._kept is not None:
            self._kept[:, rows] = (probabilities * 255).round_().to(torch.uint8).cpu().numpy()

    def mask(self) -> Mask:
        ids = self._class_ids
        counts = [int(np.count_nonzero(ids == class_id)) for class_id in range(self._num_classes)]
        confidence = torch.stack(self._highest).sum().item() / ids.size
        return Mask(ids, counts, confidence, self._kept)


def most_probable(probabilities_chw: Tensor) -> tuple[Tensor, Tensor]:
    """The highest probability at each pixel, and its class, the first of equals: uint8 (H, W)."""
    highest, class_ids = probabilities_chw[0], torch.zeros_like(probabilities_chw[0], dtype=torch.uint8)
    for class_id in range(1, len(probabilities_chw)):  # several times as quick as max(0), which counts in int64
        of_class = probabilities_chw[class_id]
        class_ids = torch.maximum(class_ids, (of_class > highest).to(torch.uint8) * class_id)
        highest = torch.maximum(highest, of_class)
    return highest, class_ids


def enlarge(values_chw: Tensor, height: int, width: int) -> Iterator[tuple[int, Tensor]]:
    """Values (C, h, w) at another size, bilinearly, as `F.interpolate(…, align_corners=False)` has it: strips of rows,
    each with the number of its first.
    """
    num_classes, rows, columns = values_chw.shape
    if (rows, columns) == (height, width):
        yield 0, values_chw
        return
    # Turned, so that columns are gathered as whole rows.
    below, above, share = _taps(columns, width, values_chw.device)
    turned = values_chw.transpose(1, 2).contiguous()
    turned = torch.lerp(turned.index_select(1, below), turned.index_select(1, above), share[:, None])
    wide = turned.transpose(1, 2).contiguous()
    below, above, share = _taps(rows, height, values_chw.device)
    strip = strip_rows(num_classes, width)
    for top in range(0, height, strip):
        some = slice(top, top + strip)
        yield top, torch.lerp(wide.index_select(1, below[some]), wide.index_select(1, above[some]), share[some, None])


def strip_rows(num_classes: int, width: int) -> int:
    """Rows that are worked on at a time."""
    return max(1, STRIP_VALUES // (num_classes * width))


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: as few as cover it and overlap by at least `overlap`, evenly spread."""
    count = 1 + math.ceil((length - tile) / (tile - overlap)) if length > tile else 1
    return [i * (length - tile) // max(1, count - 1) for i in range(count)]


def _taps(length_in: int, length_out: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each place of the result: its two neighbours in the source, and the share of the second."""
    places = ((torch.arange(length_out, device=device) + 0.5) * (length_in / length_out) - 0.5).clamp(0, length_in - 1)
    first = places.floor().long()
    return first, (first + 1).clamp(max=length_in - 1), places - first


def _tent(tile: int, overlap: int, device: torch.device) -> Tensor:
    """Weights along a side of a tile: 1 in the middle, falling linearly over the overlap, never 0."""
    from_edge = torch.arange(1, tile + 1, device=device)
    from_edge = torch.minimum(from_edge, from_edge.flip(0))
    return (from_edge / (overlap + 1)).clamp(max=1)
