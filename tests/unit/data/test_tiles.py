import dataclasses
import io
import itertools

import numpy as np
import pytest
from checkpoints import CONFIG
from PIL import Image

from petseg.data import decode, tiles
from petseg.data.labels import IGNORE_ID
from petseg.data.tiles import Tiling, tiling_of

SIZE = (32, 48)


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "starts"),
    [
        (10, 10, 4, [0]),
        (11, 10, 4, [0, 1]),
        (16, 10, 4, [0, 6]),
        (17, 10, 4, [0, 3, 7]),
        (100, 30, 0, [0, 23, 46, 70]),
        (3, 3, 2, [0]),
    ],
)
def test_tile_starts_cover_the_side_with_the_overlap(length: int, tile: int, overlap: int, starts: list[int]) -> None:
    assert tiles.starts(length, tile, overlap) == starts
    assert starts[-1] + tile == length
    assert all(one + tile - other >= overlap for one, other in itertools.pairwise(starts))


def test_tiling_of_takes_the_flags_else_the_crops_of_the_network() -> None:
    assert tiling_of(CONFIG) is None
    assert tiling_of(CONFIG, (640,)) == Tiling((640, 640), 160)
    assert tiling_of(CONFIG, (480, 640), 0) == Tiling((480, 640), 0)
    crops = dataclasses.replace(CONFIG, image_size=(100, 200), scale=0.3)
    assert tiling_of(crops) == Tiling((333, 667), 83, keeps_scale=True)
    assert tiling_of(crops, (64,)) == Tiling((64, 64), 16)


def test_cut_tile_equals_a_decoded_photo_of_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    whole = Image.fromarray(pixels)
    tile = tiles.cut(whole, 20, 50, (60, 64), (16, 24))
    assert np.array_equal(
        tile, decode.decode_photo(png(Image.fromarray(pixels[20:80, 50:114])), (16, 24), 10**6).pixels
    )
    assert np.array_equal(tiles.cut(whole, 20, 50, (60, 64), (60, 64)), pixels[20:80, 50:114])


def test_cut_beyond_the_photo_is_its_mirror_image() -> None:
    photo = picture(20, 30)
    pixels = np.asarray(photo)
    found = tiles.cut(photo, 4, 0, (50, 50), (50, 50))
    assert np.array_equal(found[:16, :30], pixels[4:])
    assert np.array_equal(found[16:32, 30:], pixels[4:][::-1, ::-1][:, :20])


@pytest.mark.parametrize("size", [(32, 48), (33, 48), (100, 170), (10, 20), (20, 100)])
def test_validation_tiles_have_each_pixel_of_the_mask_once(size: tuple[int, int]) -> None:
    class_ids = np.arange(size[0] * size[1]).reshape(size) % 7
    found = list(
        tiles.validation_tiles(picture(*size), class_ids.astype(np.uint8), Tiling(SIZE, 8, keeps_scale=True), SIZE)
    )
    counts = sum(np.bincount(tile.class_ids.ravel(), minlength=256) for tile in found)
    assert isinstance(counts, np.ndarray)
    assert counts[:7].tolist() == np.bincount(class_ids.ravel(), minlength=7).tolist()
    assert counts.sum() - counts[:7].sum() == counts[IGNORE_ID]
    assert all(tile.pixels.shape == (*SIZE, 3) for tile in found)


def test_training_tiles_are_parts_of_the_photo_and_of_its_mask() -> None:
    """The photo's red channel is the mask, so that each tile shows whether the two belong together."""
    class_ids = np.random.default_rng(3).integers(0, 5, (100, 90)).astype(np.uint8)
    photo = Image.fromarray(np.stack([class_ids] * 3, 2))
    found = list(tiles.training_tiles(photo, class_ids, Tiling(SIZE, 8), SIZE, seed=(1, 2)))
    assert len(found) == 4 * 2
    assert all(np.array_equal(tile.pixels[:, :, 0], tile.class_ids) for tile in found)
    again, other = (
        tiles.training_tiles(photo, class_ids, Tiling(SIZE, 8), SIZE, seed=seed) for seed in ((1, 2), (1, 3))
    )
    assert all(np.array_equal(one.pixels, two.pixels) for one, two in zip(found, again, strict=True))
    assert not any(np.array_equal(one.pixels, two.pixels) for one, two in zip(found, other, strict=True))


def test_training_tiles_show_a_rare_class_in_a_quarter_of_them() -> None:
    """Two classes, so that half of every second tile is at the rare one, which a random tile rarely meets."""
    class_ids = np.zeros((640, 960), np.uint8)
    class_ids[300:304, 500:504] = 1
    class_ids[:, -5:] = IGNORE_ID
    found = list(tiles.training_tiles(picture(640, 960), class_ids, Tiling(SIZE, 8), SIZE, seed=(1,)))
    assert len(found) == 400
    assert 80 <= sum((tile.class_ids == 1).any() for tile in found) <= 125


def test_training_tiles_of_a_smaller_photo_ignore_what_lies_outside() -> None:
    found = tiles.training_tiles(picture(20, 30), np.ones((20, 30), np.uint8), Tiling(SIZE, 8), SIZE, seed=(1,))
    [tile] = found
    assert (tile.class_ids[:20, :30] == 1).all() and (tile.class_ids == IGNORE_ID).sum() == 32 * 48 - 20 * 30


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
