"""Predict masks at the photos' original size. This module uses neither Ray nor files, so it runs on its own.

The network gives probabilities at its own size. They are enlarged bilinearly to the photo's size, where each pixel gets
its most probable class. A large photo may be cut into overlapping tiles. Each tile is treated as a photo, and the
results are blended.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from petseg.config.base import Precision, Resize
from petseg.data import tiles
from petseg.data.decode import Photo
from petseg.data.tiles import Tiling
from petseg.inference.probabilities import enlarge, most_probable, strip_rows, unsure_fraction
from petseg.lookahead import map_ahead
from petseg.models import precision
from petseg.models.network import Network


@dataclass(frozen=True)
class Mask:
    """Mask of one photo at its original size."""

    class_ids: np.ndarray
    """Class ids: uint8 (H, W), at the photo's original, upright size."""

    class_pixels: list[int]
    """Number of pixels of each class."""

    confidence: float
    """Mean over the pixels of the probability of the predicted class."""

    unsure: float
    """Fraction of pixels of which the network is unsure: `unsure_fraction` at its own size, or the mean over tiles."""

    probabilities: np.ndarray | None
    """255 times the probability of each class: uint8 (C, H, W); None if not requested."""


@dataclass(frozen=True)
class Prediction:
    """Network output for one photo, at the network's size. `mask` converts it to a `Mask` and may run in any thread."""

    probabilities: Tensor
    """Class probabilities: float32 (C, h, w), on the network's device."""

    height: int
    width: int
    """Height and width of the mask are the photo's original, upright size."""

    keep_probabilities: bool

    def mask(self) -> Mask:
        """Return the mask at the photo's size. Apart from the mask, only a strip of rows is in memory at that size."""
        shape = len(self.probabilities), self.height, self.width
        return _mask(self.strips(), shape, self.keep_probabilities, [unsure_fraction(self.probabilities)])

    @torch.inference_mode()
    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of its first row, probabilities (C, rows, W)) of strips at the photo's size."""
        yield from enlarge(self.probabilities, self.height, self.width)


@dataclass(frozen=True)
class TiledPrediction:
    """Prediction for one photo that is cut into tiles."""

    predictor: "Predictor"
    picture: Image.Image
    keep_probabilities: bool

    @property
    def height(self) -> int:
        """Height of the photo and of its mask in pixels."""
        return self.picture.height

    @property
    def width(self) -> int:
        """Width of the photo and of its mask in pixels."""
        return self.picture.width

    def mask(self) -> Mask:
        """Do as `Prediction.mask`."""
        unsure: list[float] = []
        strips = self.predictor.blended(self.picture, lambda tile: unsure.append(unsure_fraction(tile)))
        shape = self.predictor.num_classes, self.height, self.width
        return _mask(strips, shape, self.keep_probabilities, unsure)

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """Do as `Prediction.strips`."""
        return self.predictor.blended(self.picture)


class Predictor:
    """Network on a device, with its batch size.

    `tiling` is None if no photo is cut into tiles.

    On a CPU, `threads` batches run in parallel. Give each batch one torch thread (`torch.set_num_threads(1)`). That is
    faster than all threads on one batch, loses no speed when other processes use the cores, and gives the same bits
    for any number of cores.
    """

    def __init__(
        self,
        model: Network,
        device: torch.device,
        batch_size: int,
        size_hw: tuple[int, int],
        dtype: Precision = "auto",
        *,
        resize: Resize = "antialias",
        tiling: Tiling | None = None,
        threads: int = 1,
        probabilities: bool = False,
    ) -> None:
        folded = model.for_inference()
        self._model = folded.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._device = device
        self._batch_size = batch_size
        self._size_hw = size_hw
        self._resize: Resize = resize
        self.tiling = tiling
        self._dtype: Precision = precision.resolve(dtype, device)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._keep_probabilities = probabilities
        self.num_classes = model.num_classes

    def __call__(self, photos: list[Photo]) -> Iterator[Prediction]:
        """Yield one prediction per photo, in order. A few batches are computed ahead of the consumer.

        The photos must be decoded at the network's size.
        """
        batches = self._run([partial(_pixels, photo) for photo in photos])
        for photo, probabilities in zip(photos, batches, strict=True):
            yield Prediction(probabilities, photo.height, photo.width, self._keep_probabilities)

    def tiled(self, picture: Image.Image) -> "TiledPrediction":
        """Return the prediction of a whole photo from tiles. The network runs when its mask or its strips are used."""
        return TiledPrediction(self, picture, self._keep_probabilities)

    @torch.inference_mode()
    def blended(
        self, picture: Image.Image, on_tile: Callable[[Tensor], None] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of its first row, probabilities (C, rows, W)) of strips of a whole photo, at the photo's size.

        Where tiles overlap, their probabilities are averaged, weighted by a tent function that falls off towards the
        tile's edges. Apart from the photo, only one row of tiles is in memory at a time. `on_tile` is called with the
        probabilities of each tile, at the network's size.
        """
        tiling, (width, height) = self.tiling, picture.size
        assert tiling is not None
        tile_h, tile_w = tiling.tile_hw if tiling.keeps_scale else map(min, tiling.tile_hw, (height, width))
        tops, lefts = (
            tiles.starts(length, tile, tiling.overlap) for length, tile in ((height, tile_h), (width, tile_w))
        )
        falloff_h, falloff_w = (_tent(tile, tiling.overlap, self._device) for tile in (tile_h, tile_w))
        weight = falloff_h[:, None] * falloff_w
        wide = max(width, tile_w)  # a photo may be narrower and lower than a tile
        weights_x = torch.zeros(wide, device=self._device)
        for left in lefts:
            weights_x[left : left + tile_w] += falloff_w
        # Weighted sums over one row of tiles, including its overlap with the row above.
        row = torch.zeros(self.num_classes, tile_h, wide, device=self._device)
        weights_y = torch.zeros(tile_h, device=self._device)
        cut = partial(tiles.cut, picture, tile_hw=(tile_h, tile_w), size_hw=self._size_hw, resize=self._resize)
        predicted = self._run([partial(cut, top, left) for top in tops for left in lefts])
        for top, following in zip(tops, [*tops[1:], height], strict=True):
            for left in lefts:
                tile = next(predicted)
                if on_tile is not None:
                    on_tile(tile)
                for below, strip in enlarge(tile, tile_h, tile_w):
                    rows = slice(below, below + strip.shape[1])
                    row[:, rows, left : left + tile_w] += strip * weight[rows]
            weights_y += falloff_h
            done = following - top
            for below in range(0, done, strip_rows(self.num_classes, wide)):
                rows = slice(below, min(done, below + strip_rows(self.num_classes, wide)))
                yield top + below, (row[:, rows] / (weights_y[rows, None] * weights_x))[:, :, :width]
            kept = tile_h - done
            for sums, axis in ((row, 1), (weights_y, 0)):
                sums.narrow(axis, 0, kept).copy_(sums.narrow(axis, done, kept).clone())
                sums.narrow(axis, kept, done).zero_()

    def _run(self, pixels: list[Callable[[], np.ndarray]]) -> Iterator[Tensor]:
        """Yield probabilities, float32 (C, H, W) on the device, for each photo or tile at the network's size.

        Each callable in `pixels` returns one photo or tile. It is called only when its batch starts.
        """
        batches = (pixels[i : i + self._batch_size] for i in range(0, len(pixels), self._batch_size))
        return itertools.chain.from_iterable(map_ahead(self._pool, self._forward, batches, self._threads))

    @torch.inference_mode()
    def _forward(self, batch: Iterable[Callable[[], np.ndarray]]) -> Tensor:
        pixels = torch.from_numpy(np.stack([make() for make in batch])).to(self._device)
        with precision.autocast(self._dtype, self._device):
            logits = self._model(pixels.permute(0, 3, 1, 2))
        return logits.float().softmax(1)


def _pixels(photo: Photo) -> np.ndarray:
    return photo.pixels


@torch.inference_mode()
def _mask(
    strips: Iterator[tuple[int, Tensor]], shape: tuple[int, int, int], keep_probabilities: bool, unsure: list[float]
) -> Mask:
    """Build a mask from its strips. `unsure` holds the unsure fraction of each tile once the strips have been read."""
    canvas = _Canvas(*shape, keep_probabilities)
    for top, strip in strips:
        canvas.put(top, strip)
    return canvas.mask(sum(unsure) / len(unsure))


class _Canvas:
    """Build a mask at the original size strip by strip."""

    def __init__(self, num_classes: int, height: int, width: int, keep_probabilities: bool) -> None:
        self._class_ids = np.empty((height, width), np.uint8)
        self._kept = np.empty((num_classes, height, width), np.uint8) if keep_probabilities else None
        self._num_classes = num_classes
        self._highest: list[Tensor] = []

    def put(self, top: int, probabilities: Tensor) -> None:
        """Add the rows from `top` on. `probabilities` is float32 (C, rows, W)."""
        rows = slice(top, top + probabilities.shape[1])
        highest, class_ids = most_probable(probabilities)
        self._class_ids[rows] = class_ids.cpu().numpy()
        self._highest.append(highest.sum(dtype=torch.float64))
        if self._kept is not None:
            self._kept[:, rows] = (probabilities * 255).round_().to(torch.uint8).cpu().numpy()

    def mask(self, unsure: float) -> Mask:
        ids = self._class_ids
        counts = [int(np.count_nonzero(ids == class_id)) for class_id in range(self._num_classes)]
        confidence = torch.stack(self._highest).sum().item() / ids.size
        return Mask(ids, counts, confidence, unsure, self._kept)


def _tent(tile: int, overlap: int, device: torch.device) -> Tensor:
    """Return the weights along a side of a tile: 1 in the middle, falling linearly over the overlap, never 0."""
    from_edge = torch.arange(1, tile + 1, device=device)
    from_edge = torch.minimum(from_edge, from_edge.flip(0))
    return (from_edge / (overlap + 1)).clamp(max=1)
