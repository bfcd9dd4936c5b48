"""Decode images to arrays, turn them upright and resize them. No folders, no torch, no Ray.

Training and prediction decode with the same functions, so that the network sees the same pixels in both.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from petseg.config.base import MAX_PIXELS, Resize
from petseg.data import image_file
from petseg.data.image_file import SWAPS_SIDES, DecodeError, OpenImage, lift_pillow_limit, open_image, upright
from petseg.data.notes import notes_of

_MAX_SAMPLE_VALUE = 281  # TIFF
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte orders in Pillow's raw modes (big, little, native) and the opposite ones."""

_FILTERS: dict[Resize, Image.Resampling] = {
    "antialias": Image.Resampling.BILINEAR,  # Pillow widens the filter as far as the image shrinks
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Photo:
    """A decoded photo and the size of its upright original.

    `pixels` is RGB, uint8 (H, W, 3), at the requested size; `height` and `width` are the original's, in pixels. `notes`
    are those of `notes.notes_of`.
    """

    pixels: np.ndarray
    height: int
    width: int
    notes: tuple[str, ...] = ()


def decode_photo(content: bytes, size_hw: tuple[int, int], max_pixels: int, resize: Resize = "antialias") -> Photo:
    """Decode a photo, turn it upright by its EXIF orientation, convert it to RGB, and resize it.

    `resize` is bilinear with antialiasing, or the nearest pixel. An animation gives its first frame. Alpha is dropped.
    More than 8 bits are scaled to 8, from the range that the file declares or else from the bits that its values use.

    Raises `DecodeError` if the photo cannot be used, and, before decoding it, if it has more than `max_pixels` pixels.
    """
    return decode_opened(open_image(content, max_pixels), size_hw, resize)


def content_format(content: bytes) -> str:
    """Return which of `FORMATS` an image has, by its content. Raises `DecodeError` if it has another format."""
    return open_image(content, MAX_PIXELS).image.format or ""


def upright_size(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the height and width of a photo once it is upright. Raises `DecodeError` as `decode_photo` does."""
    width, height = open_image(content, max_pixels).header.size
    return height, width


def decode_whole(content: bytes, max_pixels: int) -> Image.Image:
    """Decode a photo at its own size: RGB and upright, 4 bytes a pixel. Raises `DecodeError` as `decode_photo` does."""
    return load_whole(open_image(content, max_pixels))


def load_whole(opened: OpenImage) -> Image.Image:
    """Do as `decode_whole` with an image that is open."""
    return upright(_load_rgb(opened), opened.header.still_to_turn)


def decode_small(content: bytes, side: int, max_pixels: int) -> Image.Image:
    """Decode a photo, upright, RGB, at most `side` pixels a side. Raises `DecodeError` as `decode_photo` does."""
    opened = open_image(content, max_pixels)
    shrink = max(1.0, max(opened.header.size) / side)
    width, height = (max(1, round(side / shrink)) for side in opened.header.size)
    return Image.fromarray(decode_opened(opened, (height, width), "antialias").pixels)


def crop(picture: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """Return a part of a whole photo."""
    with lift_pillow_limit():
        return picture.crop((left, top, left + width, top + height))


def resized(picture: Image.Image, size_hw: tuple[int, int], resize: Resize = "antialias") -> np.ndarray:
    """Return a whole photo, or a part of it, resized as `decode_photo` resizes: uint8 (H, W, 3) at `size_hw`."""
    rows, columns = size_hw
    return np.asarray(picture.resize((columns, rows), _FILTERS[resize]))


def max_bytes(max_pixels: int) -> int:
    """Return the size limit in bytes for a file of at most `max_pixels` pixels; a larger file is not read into memory.

    The limit is 16 bits for each of four channels, and 64 MiB for metadata.
    """
    return 8 * max_pixels + 2**26


def from_column(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Return fixed-size binary values as uint8 (n, *shape), read-only.

    The bytes are not copied when the column has one chunk. A null value gives arbitrary bytes.
    """
    values = column.combine_chunks()
    size = math.prod(shape)
    data = np.frombuffer(values.buffers()[1], np.uint8, count=len(values) * size, offset=values.offset * size)
    return data.reshape(-1, *shape)


def decode_opened(opened: OpenImage, size_hw: tuple[int, int], resize: Resize) -> Photo:
    """Do as `decode_photo` with an image that is open."""
    header, notes = opened.header, notes_of(opened)
    rows, columns = size_hw[::-1] if header.still_to_turn in SWAPS_SIDES else size_hw
    # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is at least the requested size. This takes a third less
    # time for 500 × 375. Pixels differ by 0.8 of 255 (mean) from those of decoding the whole photo and shrinking it.
    drafted = opened.image.draft("RGB", (columns, rows)) if resize == "antialias" else None
    box = drafted[1] if drafted else None  # its right and bottom edges may lie inside a pixel
    resized = _load_rgb(opened).resize((columns, rows), _FILTERS[resize], box)
    width, height = header.size
    return Photo(np.asarray(upright(resized, header.still_to_turn)), height, width, notes)


def _load_rgb(opened: OpenImage) -> Image.Image:
    """Decode an open image of any mode and convert it to RGB, 8 bits.

    Raises `DecodeError` if it cannot be decoded, or if its pixels are floating-point numbers or have more than 16 bits.
    """
    opened.load()
    image = opened.image
    if image.mode == "F":
        raise DecodeError("its pixels are floating-point numbers of unknown scale; store it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow would clip values over 255 instead of scaling them
        return Image.fromarray(_to_8_bits(np.asarray(image), _white(image))).convert("RGB")
    channels, _, order = opened.raw_mode.partition(";16")
    if channels in ("RGB", "RGBA") and order in _SWAPPED and (high := np.asarray(image)[..., :3]).max() < 128:
        # Pillow decodes only the upper byte of each value. With the bytes swapped, it decodes the lower one.
        lower = opened.open_as(f"{channels};16{_SWAPPED[order]}")
        lower.load()
        values = high.astype(np.uint16) << 8 | np.asarray(lower.image)[..., :3]
        return Image.fromarray(_to_8_bits(values, _white(image)))
    with image_file.as_decode_errors():  # a few modes cannot be converted
        return image if image.mode == "RGB" else image.convert("RGB")


def _white(image: ImageFile.ImageFile) -> int:
    """Return the largest value of an image's range by its TIFF tag MaxSampleValue; 0 if it has none."""
    value = image.tag_v2.get(_MAX_SAMPLE_VALUE, 0) if isinstance(image, TiffImageFile) else 0
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else 0


def _to_8_bits(values: np.ndarray, white: int) -> np.ndarray:
    """Scale integers of up to 16 bits to uint8.

    Cameras and microscopes store 10, 12 or 14 bits in files of 16. The scale is from 0 to `white`, or, if a value is
    larger, to the largest number with as many bits as the largest value, at least 8.

    Raises `DecodeError` if a value is negative or has more than 16 bits.
    """
    largest = int(values.max())
    if values.min() < 0 or largest > 65535:
        raise DecodeError("its pixels have more than 16 bits; store it with 8 or 16")
    if 0 < largest <= white:
        return (values.astype(np.uint32) * 255 // white).astype(np.uint8)
    return (values >> max(0, largest.bit_length() - 8)).astype(np.uint8)
