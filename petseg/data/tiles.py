"""Cut photos into tiles: where tiles begin, what they contain, and which of them to train on. No files, no torch."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from petseg.config.base import Resize
from petseg.config.model import ModelConfig
from petseg.data import decode
from petseg.data.labels import IGNORE_ID


@dataclass(frozen=True)
class Tiling:
    """Size and overlap of the tiles that photos are cut into. Each tile is resized to the network's input."""

    tile_hw: tuple[int, int]
    """Height and width of a tile, in pixels of the photo."""

    overlap: int
    """Minimum overlap of neighbouring tiles, in pixels of the photo."""

    keeps_scale: bool = False
    """If True, a photo smaller than a tile is extended by its mirror image. If False, it is resized as a whole."""

    def cuts(self, height: int, width: int) -> bool:
        """Return True if a photo of this size is cut into tiles, instead of being resized as a whole."""
        return self.keeps_scale or height > self.tile_hw[0] or width > self.tile_hw[1]


def tiling_of(model: ModelConfig, tile: tuple[int, ...] = (), overlap: int | None = None) -> Tiling | None:
    """Return the tiles of a prediction: those that the flags ask for, else those that the network was trained on.

    `tile` has the height and the width, or one number for both. The default overlap is a quarter of the shorter side.
    Returns None if photos are resized as a whole.
    """
    if tile:
        tile_hw = tile[0], tile[-1]
    elif model.scale is not None:
        height, width = model.image_size
        tile_hw = round(height / model.scale), round(width / model.scale)
    else:
        return None
    return Tiling(tile_hw, min(tile_hw) // 4 if overlap is None else overlap, keeps_scale=not tile)


@dataclass(frozen=True)
class Tile:
    """Part of a photo with its mask, at the network's size."""

    pixels: np.ndarray
    """RGB: uint8 (H, W, 3)."""

    class_ids: np.ndarray
    """Class ids: uint8 (H, W). Pixels outside the photo, and those that another tile scores, are ignored."""


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along a side: the fewest that cover it with at least `overlap`, evenly spread."""
    count = 1 + math.ceil((length - tile) / (tile - overlap)) if length > tile else 1
    return [i * (length - tile) // max(1, count - 1) for i in range(count)]


def cut(
    picture: Image.Image,
    top: int,
    left: int,
    tile_hw: tuple[int, int],
    size_hw: tuple[int, int],
    resize: Resize = "antialias",
) -> np.ndarray:
    """Return a tile of a whole photo, resized as `decode.decode_photo` resizes: uint8 (H, W, 3) at `size_hw`.

    The tile begins at pixel (`top`, `left`) and has the size `tile_hw`. The area below and to the right of the photo is
    filled with its mirror image.
    """
    height, width = min(tile_hw[0], picture.height - top), min(tile_hw[1], picture.width - left)
    part = decode.crop(picture, top, left, height, width)
    # Resize first: at a small scale, a tile may be far larger than the photo.
    rows, columns = max(1, round(height * size_hw[0] / tile_hw[0])), max(1, round(width * size_hw[1] / tile_hw[1]))
    pixels = decode.resized(part, (rows, columns), resize)
    return np.pad(pixels, ((0, size_hw[0] - rows), (0, size_hw[1] - columns), (0, 0)), "symmetric")


def validation_tiles(
    picture: Image.Image, class_ids: np.ndarray, tiling: Tiling, size_hw: tuple[int, int], resize: Resize = "antialias"
) -> Iterator[Tile]:
    """Yield the tiles that a prediction would use. Where tiles overlap, each pixel is ignored in all but one of them.

    `class_ids` is uint8 (H, W) at the photo's size.
    """
    tops, lefts = (
        _with_scored_part(*side, tiling.overlap) for side in zip(class_ids.shape, tiling.tile_hw, strict=True)
    )
    for (top, rows), (left, columns) in itertools.product(tops, lefts):
        pixels = cut(picture, top, left, tiling.tile_hw, size_hw, resize)
        yield Tile(pixels, _cut_mask(class_ids, top, left, rows, columns, tiling.tile_hw, size_hw))


def training_tiles(
    picture: Image.Image,
    class_ids: np.ndarray,
    tiling: Tiling,
    size_hw: tuple[int, int],
    resize: Resize = "antialias",
    *,
    seed: tuple[int, ...],
) -> Iterator[Tile]:
    """Yield random tiles, as many as cover the photo. `seed` determines where they are.

    Every second one contains a random pixel of a random class of the photo, so that rare classes are seen often.
    `class_ids` is uint8 (H, W) at the photo's size.
    """
    (height, width), (tile_h, tile_w) = class_ids.shape, tiling.tile_hw
    generator = np.random.default_rng(seed)
    classes = [class_id for class_id in np.unique(class_ids).tolist() if class_id != IGNORE_ID]
    for number in range(len(starts(height, tile_h, 0)) * len(starts(width, tile_w, 0))):
        last_top, last_left = max(0, height - tile_h), max(0, width - tile_w)
        top, left = int(generator.integers(last_top + 1)), int(generator.integers(last_left + 1))
        if number % 2 and classes:
            row, column = _random_pixel(class_ids == classes[generator.integers(len(classes))], generator)
            top = min(last_top, max(0, row - int(generator.integers(tile_h))))
            left = min(last_left, max(0, column - int(generator.integers(tile_w))))
        rows, columns = slice(top, min(top + tile_h, height)), slice(left, min(left + tile_w, width))
        pixels = cut(picture, top, left, tiling.tile_hw, size_hw, resize)
        yield Tile(pixels, _cut_mask(class_ids, top, left, rows, columns, tiling.tile_hw, size_hw))


def _random_pixel(chosen: np.ndarray, generator: np.random.Generator) -> tuple[int, int]:
    """Return (row, column) of a random pixel of those that are True in `chosen`, bool (H, W)."""
    ends = np.count_nonzero(chosen, axis=1).cumsum()
    number = int(generator.integers(ends[-1]))
    row = int(np.searchsorted(ends, number, side="right"))
    columns = np.flatnonzero(chosen[row])
    return row, int(columns[number - ends[row]])


def _with_scored_part(length: int, tile: int, overlap: int) -> list[tuple[int, slice]]:
    """Return (start, scored rows or columns) of each tile along a side. These cover the side once."""
    begins = starts(length, tile, overlap)
    middles = [(start + tile + following) // 2 for start, following in itertools.pairwise(begins)]
    parts = itertools.starmap(slice, itertools.pairwise([0, *middles, length]))
    return list(zip(begins, parts, strict=True))


def _cut_mask(
    class_ids: np.ndarray,
    top: int,
    left: int,
    rows: slice,
    columns: slice,
    tile_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> np.ndarray:
    """Return the class ids of a tile, uint8 (H, W) at `size_hw`, ignored outside `rows` and `columns` of the photo."""
    ids = np.full(tile_hw, IGNORE_ID, np.uint8)
    ids[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = class_ids[rows, columns]
    height, width = size_hw
    return np.asarray(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))
