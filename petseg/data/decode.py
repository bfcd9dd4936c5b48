"""Bytes to arrays and back: decode, resize, upright, encode. Arrays in and out; no folders, no torch, no Ray.

Training and prediction decode with the same functions, so that the network sees the same pixels in both.
"""

import contextlib
import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFile

from petseg.config.base import Resize

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are decoded, whatever the file is called. Others (PDF, PostScript, …) stay closed: they run programs."""

MAX_TRAINING_PIXELS = 2**27
"""A larger training photo is refused instead of decoded; 128 megapixels, 400 MB."""

PNG_STRATEGY = 3
"""zlib's Z_RLE, for a mask: there is little but runs to find in it. 2.2 kB for 500 × 375, as with level 6, in half the
time."""

MAX_SIDE = 65535
"""Longest side in pixels, JPEG's own limit: a longer thread of pixels is no photo, but costs like a large one."""

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
    "antialias": Image.Resampling.BILINEAR,  # Pillow widens it as far as the image shrinks
    "nearest": Image.Resampling.NEAREST,
}


class DecodeError(ValueError):
    """These bytes are not an image that can be used; the message says why, without the file's name."""

    def __init__(self, message: str, in_mask: bool = False) -> None:
        super().__init__(message)
        self.in_mask = in_mask
        """Of a pair: whether it is the mask."""


@dataclass(frozen=True)
class Photo:
    """A decoded photo: uint8 (H, W, 3) RGB at the size asked for, and the size of the upright original."""

    pixels: np.ndarray
    height: int
    width: int


def decode_photo(content: bytes, size_hw: tuple[int, int], max_pixels: int, resize: Resize = "antialias") -> Photo:
    """Decode a photo, turn it upright by its EXIF orientation, make it RGB, and resize it.

    Bilinear with antialiasing, or to the nearest pixel. Of an animation, the first frame. Alpha is dropped, 16-bit
    depth is cut to 8.
    Raises `DecodeError`, also where the photo has more than `max_pixels` pixels, before it is decoded.
    """
    with as_decode_errors():
        image = open_image(content, max_pixels)
        return decode_opened(image, header_of(image), size_hw, resize)


def content_format(content: bytes) -> str:
    """Which of `FORMATS` an image is, whatever its name says. Raises `DecodeError` where it is none of them."""
    with as_decode_errors():
        return open_image(content, MAX_TRAINING_PIXELS).format or ""


def upright_size(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Height and width of a photo once it is upright. Raises `DecodeError` as `decode_photo` does."""
    with as_decode_errors():
        width, height = header_of(open_image(content, max_pixels)).size
        return height, width


def orientation(content: bytes, max_pixels: int) -> int:
    """The EXIF orientation of a photo: 1 (upright) to 8. Raises `DecodeError` as `decode_photo` does."""
    with as_decode_errors():
        return header_of(open_image(content, max_pixels)).orientation


def decode_whole(content: bytes, max_pixels: int) -> Image.Image:
    """A photo at its own size: RGB and upright, 4 bytes a pixel. Raises `DecodeError` as `decode_photo` does."""
    with as_decode_errors():
        image = open_image(content, max_pixels)
        header = header_of(image)
        image.load()  # Pillow would put it off, and fail where nobody expects it
        return upright(_rgb(image), header.still_to_turn)


def decode_small(content: bytes, side: int, max_pixels: int) -> Image.Image:
    """A photo, upright, RGB, at most `side` pixels a side. Raises `DecodeError` as `decode_photo` does."""
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
    """A part of a whole photo as `decode_photo` gives a photo: uint8 (H, W, 3) at `size_hw`."""
    height, width = tile_hw
    rows, columns = size_hw
    part = picture.crop((left, top, left + width, top + height))
    return np.asarray(part.resize((columns, rows), _FILTERS[resize]))


def max_bytes(max_pixels: int) -> int:
    """What a file within `max_pixels` has at most: 16 bits for each of four channels, and some more for what comes
    along. A larger one is not worth its memory.
    """
    return 8 * max_pixels + 2**26


def encode_grey(values: np.ndarray) -> bytes:
    """uint8 (H, W) as a grey PNG, at the level that is quickest: probabilities hardly shrink."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray, palette: tuple[tuple[int, int, int], ...]) -> bytes:
    """Class ids, uint8 (H, W), as an indexed-colour PNG: the pixel values are the ids, the palette is for looking."""
    image = Image.fromarray(mask, mode="P")
    image.putpalette([channel for colour in palette for channel in colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, compress_type=PNG_STRATEGY)
    return buffer.getvalue()


def from_column(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Fixed-size binary values as uint8 (n, *shape), read-only and not copied; where a value is null, anything."""
    values = column.combine_chunks()
    size = math.prod(shape)
    data = np.frombuffer(values.buffers()[1], np.uint8, count=len(values) * size, offset=values.offset * size)
    return data.reshape(-1, *shape)


@contextlib.contextmanager
def as_decode_errors(in_mask: bool = False) -> Iterator[None]:
    """Pillow's decoders raise many types on broken bytes; all mean the same here."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if not isinstance(error, DecodeError):
            text = f"{type(error).__name__}: {text}"
        raise DecodeError(text, in_mask) from error


@dataclass(frozen=True)
class Header:
    """How an image lies: its EXIF orientation, and its (width, height) as stored and upright."""

    orientation: int
    stored_size: tuple[int, int]
    size: tuple[int, int]
    still_to_turn: int
    """The orientation that remains to be applied to the pixels as Pillow gives them."""


def open_image(content: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header only."""
    if not content:
        raise DecodeError("the file is empty")
    Image.MAX_IMAGE_PIXELS = None  # ours, checked next, takes its place: Pillow's is one number for the process
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
    """What `decode_photo` makes of an image that is open, with its `header_of`."""
    rows, columns = size_hw[::-1] if header.still_to_turn in SWAPS_SIDES else size_hw
    # A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as that is no less than the size asked for: a
    # third less time for 500 × 375, and by 0.8 of 255 (mean) from what decoding it whole and then shrinking it gives.
    drafted = image.draft("RGB", (columns, rows)) if resize == "antialias" else None
    box = drafted[1] if drafted else None  # its edge may lie inside the last pixel
    resized = _rgb(image).resize((columns, rows), _FILTERS[resize], box)
    width, height = header.size
    return Photo(np.asarray(upright(resized, header.still_to_turn)), height, width)


def header_of(image: Image.Image) -> Header:
    """Orientation 1 (upright) also where the tag is missing, broken or not one of 1..8."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, ValueError, KeyError, IndexError, TypeError, SyntaxError, struct.error):
        # Broken metadata says nothing of the pixels, which are still good.
        orientation = 1
    if orientation not in _TRANSPOSE:
        orientation = 1
    width, height = image.size
    other = (height, width) if orientation in SWAPS_SIDES else (width, height)
    if image.format == "TIFF":  # these Pillow turns itself, and gives the upright size
        return Header(orientation, other, (width, height), still_to_turn=1)
    return Header(orientation, (width, height), other, still_to_turn=orientation)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image turned by its EXIF orientation; 1, and what is none, leaves it."""
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB."""
    if image.mode == "F":
        raise DecodeError("its pixels are floating-point numbers of unknown scale; store it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow would clip values over 255 instead of scaling them
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("its pixels have more than 16 bits; store it with 8 or 16")
        is_8_bit = image.mode == "I" and values.max() < 256  # 32 bits with room to spare
        image = Image.fromarray((values if is_8_bit else values >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
