"""Decode images to arrays, turn them upright and resize them. No folders, no torch, no Ray.

Training and prediction decode with the same functions, so that the network sees the same pixels in both.
"""

import contextlib
import io
import math
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFile

from petseg.config.base import Resize

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Pillow's names of the formats that are decoded. For some others, such as PDF, it would start other programs."""

MAX_TRAINING_PIXELS = 2**27
"""Largest training photo in pixels: 128 megapixels, 400 MB once decoded. A larger one is refused before decoding."""

MAX_SIDE = 65535
"""Longest side in pixels, JPEG's own limit. A longer and narrower image is not a photo, but costs as much as one."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = {5, 6, 7, 8}
_FILTERS: dict[Resize, Image.Resampling] = {
    "antialias": Image.Resampling.BILINEAR,  # Pillow widens the filter as far as the image shrinks
    "nearest": Image.Resampling.NEAREST,
}


class DecodeError(ValueError):
    """Raised for bytes that are not a usable image; the message says why, without the file's name."""

    def __init__(self, message: str, in_mask: bool = False) -> None:
        super().__init__(message)
        self.in_mask = in_mask
        """True if the unusable image of a pair is the mask."""


@dataclass(frozen=True)
class Photo:
    """A decoded photo and the size of its upright original.

    `pixels` is RGB, uint8 (H, W, 3), at the requested size; `height` and `width` are the original's, in pixels.
    """

    pixels: np.ndarray
    height: int
    width: int


def decode_photo(content: bytes, size_hw: tuple[int, int], max_pixels: int, resize: Resize = "antialias") -> Photo:
    """Decode a photo, turn it upright by its EXIF orientation, convert it to RGB, and resize it.

    `resize` is bilinear with antialiasing, or the nearest pixel. An animation gives its first frame. Alpha is dropped,
    and 16-bit depth is cut to 8.

    Raises `DecodeError` if the photo cannot be used, and, before decoding it, if it has more than `max_pixels` pixels.
    """
    with as_decode_errors():
        image = open_image(content, max_pixels)
        return decode_opened(image, header_of(image), size_hw, resize)


def content_format(content: bytes) -> str:
    """Return which of `FORMATS` an image has, by its content. Raises `DecodeError` if it has another format."""
    with as_decode_errors():
        return open_image(content, MAX_TRAINING_PIXELS).format or ""


def upright_size(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the height and width of a photo once it is upright. Raises `DecodeError` as `decode_photo` does."""
    with as_decode_errors():
        width, height = header_of(open_image(content, max_pixels)).size
        return height, width


def orientation(content: bytes, max_pixels: int) -> int:
    """Return the EXIF orientation of a photo: 1 (upright) to 8. Raises `DecodeError` as `decode_photo` does."""
    with as_decode_errors():
        return header_of(open_image(content, max_pixels)).orientation


def decode_whole(content: bytes, max_pixels: int) -> Image.Image:
    """Decode a photo at its own size: RGB and upright, 4 bytes a pixel. Raises `DecodeError` as `decode_photo` does."""
    with as_decode_errors():
        image = open_image(content, max_pixels)
        header = header_of(image)
        image.load()  # otherwise Pillow decodes later, where an error is not expected
        return upright(_to_rgb(image), header.still_to_turn)


def decode_small(content: bytes, side: int, max_pixels: int) -> Image.Image:
    """Decode a photo, upright, RGB, at most `side` pixels a side. Raises `DecodeError` as `decode_photo` does."""
    with as_decode_errors():
        image = open_image(content, max_pixels)
        header = header_of(image)
        shrink = max(1.0, max(image.size) / side)
        width, height = (max(1, round(side / shrink)) for side in image.size)
        size_hw = (height, width) if header.still_to_turn not in SWAPS_SIDES else (width, height)
        return Image.fromarray(decode_opened(image, header, size_hw, "antialias").pixels)


def cut(
    picture: Image.Image,
    top: int,
    left: int,
    tile_hw: tuple[int, int],
    size_hw: tuple[int, int],
    resize: Resize = "antialias",
) -> np.ndarray:
    """Return a tile of a whole photo, resized as `decode_photo` resizes: uint8 (H, W, 3) at `size_hw`.

    The tile begins at pixel (`top`, `left`) and has the size `tile_hw`.
    """
    height, width = tile_hw
    rows, columns = size_hw
    with lift_pillow_limit():
        part = picture.crop((left, top, left + width, top + height))
    return np.asarray(part.resize((columns, rows), _FILTERS[resize]))


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


@contextlib.contextmanager
def as_decode_errors(in_mask: bool = False) -> Iterator[None]:
    """Turn any exception into a `DecodeError`; Pillow's decoders raise many types for broken bytes.

    `in_mask` is passed on to the error.
    """
    try:
        with lift_pillow_limit():
            yield
    except Exception as error:
        text = " ".join(str(error).split())
        if not isinstance(error, DecodeError):
            text = f"{type(error).__name__}: {text}"
        raise DecodeError(text, in_mask) from error


class _PillowLimit:
    """Pillow's limit on the pixels of an image, which is global, while some threads have lifted it."""

    lock = threading.Lock()
    lifted = 0
    before: int | None = None


@contextlib.contextmanager
def lift_pillow_limit() -> Iterator[None]:
    """Lift Pillow's own limit in the `with` block, where ours holds. Put it back once no thread needs it lifted.

    `petseg.load` runs in its caller's process, whose setting must stay as it is.
    """
    with _PillowLimit.lock:
        if not _PillowLimit.lifted:
            _PillowLimit.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _PillowLimit.lifted += 1
    try:
        yield
    finally:
        with _PillowLimit.lock:
            _PillowLimit.lifted -= 1
            if not _PillowLimit.lifted:
                Image.MAX_IMAGE_PIXELS = _PillowLimit.before


@dataclass(frozen=True)
class Header:
    """An image's EXIF orientation (1 to 8) and its sizes, as (width, height) in pixels.

    `stored_size` is the size before it is turned upright, and `size` the one after.
    """

    orientation: int
    stored_size: tuple[int, int]
    size: tuple[int, int]
    still_to_turn: int
    """The EXIF orientation that must still be applied to the pixels that Pillow decodes."""


def open_image(content: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open an image by reading its header only.

    Raises `DecodeError` if the content is empty, has none of `FORMATS`, or exceeds `MAX_SIDE` or `max_pixels`.
    """
    if not content:
        raise DecodeError("the file is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise DecodeError(f"not an image that can be read ({kinds}); it starts with {content[:8]!r}") from error
    if max(image.size) > MAX_SIDE:
        raise DecodeError(f"{image.width} × {image.height} pixels: a side is longer than {MAX_SIDE}")
    if image.width * image.height > max_pixels:
        raise DecodeError(f"{image.width} × {image.height} pixels are more than the limit of {max_pixels}")
    return image


def decode_opened(image: Image.Image, header: Header, size_hw: tuple[int, int], resize: Resize) -> Photo:
    """Do as `decode_photo` with an image that is open; `header` is its `header_of`."""
    rows, columns = size_hw[::-1] if header.still_to_turn in SWAPS_SIDES else size_hw
    # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is at least the requested size. This takes a third less
    # time for 500 × 375. Pixels differ by 0.8 of 255 (mean) from those of decoding the whole photo and shrinking it.
    drafted = image.draft("RGB", (columns, rows)) if resize == "antialias" else None
    box = drafted[1] if drafted else None  # its right and bottom edges may lie inside a pixel
    resized = _to_rgb(image).resize((columns, rows), _FILTERS[resize], box)
    width, height = header.size
    return Photo(np.asarray(upright(resized, header.still_to_turn)), height, width)


def header_of(image: Image.Image) -> Header:
    """Return an image's `Header`. The orientation is 1 (upright) if the tag is missing, broken or not one of 1..8."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, ValueError, KeyError, IndexError, TypeError, SyntaxError, struct.error):
        # Broken metadata does not mean broken pixels.
        orientation = 1
    if orientation not in _TRANSPOSE:
        orientation = 1
    width, height = image.size
    other = (height, width) if orientation in SWAPS_SIDES else (width, height)
    if image.format == "TIFF":  # Pillow turns TIFF itself, and gives the upright size
        return Header(orientation, other, (width, height), still_to_turn=1)
    return Header(orientation, (width, height), other, still_to_turn=orientation)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image turned upright by its EXIF orientation; 1 and invalid orientations leave it unchanged."""
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, 8 bits.

    Raises `DecodeError` if the pixels are floating-point numbers or have more than 16 bits.
    """
    if image.mode == "F":
        raise DecodeError("its pixels are floating-point numbers of unknown scale; store it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow would clip values over 255 instead of scaling them
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("its pixels have more than 16 bits; store it with 8 or 16")
        is_8_bit = image.mode == "I" and values.max() < 256  # stored in 32 bits
        image = Image.fromarray((values if is_8_bit else values >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
