"""Bytes to arrays and back: decode, resize, upright, encode. Arrays in and out; no folders, no torch, no Ray.

Training and prediction decode with the same functions, so that the network sees the same pixels in both.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from petseg import labels

FORMATS = ("BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
"""Formats that are decoded, whatever the file is called. Others (PDF, PostScript, …) stay closed: they run programs."""

PNG_LEVEL = 3
"""zlib level of a mask: nearly as fast as 1, a sixth smaller; 6, the default, halves the speed for another sixth."""

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
_SWAPS_SIDES = {5, 6, 7, 8}


class DecodeError(ValueError):
    """These bytes are not an image that can be used; the message says why, without the file's name."""


@dataclass(frozen=True)
class Photo:
    """A decoded photo: `pixels` uint8 (H, W, 3) RGB at the size asked for; `height` and `width` of the upright original."""

    pixels: np.ndarray
    height: int
    width: int


def decode_photo(content: bytes, size_hw: tuple[int, int], max_pixels: int) -> Photo:
    """Decode a photo, turn it upright by its EXIF orientation, make it RGB, and resize it.

    Bilinear with antialiasing. Of an animation, the first frame. Alpha is dropped, 16-bit depth is cut to 8.
    Raises `DecodeError`, also where the photo has more than `max_pixels` pixels, before it is decoded.
    """
    try:
        return _decode_photo(_open(content, max_pixels), size_hw)
    except DecodeError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on broken bytes; all mean the same here
        raise DecodeError(_reason(error)) from error


def decode_pair(
    photo: bytes, mask: bytes, size_hw: tuple[int, int], table: np.ndarray, max_pixels: int
) -> tuple[Photo, np.ndarray]:
    """Decode a photo and its mask alike: (photo, class ids uint8 (H, W)), both upright and at `size_hw`.

    `table` is `labels.lookup_table`. Masks are resized with NEAREST: a filter would invent classes between classes.
    The photo's EXIF orientation turns the mask, too, unless the mask has its own, or was drawn upright already (its
    stored size is the photo's upright size and not its stored one).

    Raises `DecodeError` where either cannot be decoded, their sizes differ, or the mask has a value that no class
    covers; the message says which of the two it means.
    """
    try:
        decoded = decode_photo(photo, size_hw, max_pixels)
    except DecodeError as error:
        raise DecodeError(f"photo: {error}") from error
    try:
        return decoded, _decode_mask(mask, photo, size_hw, table, max_pixels)
    except DecodeError as error:
        raise DecodeError(f"mask: {error}") from error
    except Exception as error:  # as in decode_photo
        raise DecodeError(f"mask: {_reason(error)}") from error


def encode_mask(mask: np.ndarray, palette: tuple[tuple[int, int, int], ...]) -> bytes:
    """Class ids, uint8 (H, W), as an indexed-colour PNG: the pixel values are the ids, the palette is for looking."""
    image = Image.fromarray(mask, mode="P")
    image.putpalette([channel for colour in palette for channel in colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _open(content: bytes, max_pixels: int) -> Image.Image:
    """Read the header only."""
    if not content:
        raise DecodeError("the file is empty")
    Image.MAX_IMAGE_PIXELS = None  # ours, checked next, takes its place: Pillow's is one number for the process
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise DecodeError(f"not an image that can be read ({kinds}); it starts with {content[:8]!r}") from error
    if image.width * image.height > max_pixels:
        raise DecodeError(f"{image.width} × {image.height} pixels are more than the limit of {max_pixels}")
    return image


def _decode_photo(image: Image.Image, size_hw: tuple[int, int]) -> Photo:
    width, height = image.size
    orientation = _orientation(image)
    stored_hw = size_hw
    if orientation in _SWAPS_SIDES:
        width, height, stored_hw = height, width, size_hw[::-1]
    # A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size. Twice the size asked for leaves the antialiasing to the
    # resize: the mean difference from the full decode is 0.01 of 255, and large photos take a fraction of the time.
    image.draft("RGB", (2 * stored_hw[1], 2 * stored_hw[0]))
    resized = _rgb(image).resize(stored_hw[::-1], Image.Resampling.BILINEAR)
    return Photo(np.asarray(_upright(resized, orientation)), height, width)


def _decode_mask(
    content: bytes, photo: bytes, size_hw: tuple[int, int], table: np.ndarray, max_pixels: int
) -> np.ndarray:
    image, photo_header = _open(content, max_pixels), _open(photo, max_pixels)
    orientation = _orientation(image)
    turned_by_photo = _orientation(photo_header)
    stored_size, upright_size = photo_header.size, photo_header.size
    if turned_by_photo in _SWAPS_SIDES:
        upright_size = stored_size[::-1]
    if orientation == 1 and image.size == stored_size:
        orientation = turned_by_photo
    mask_size = image.size[::-1] if orientation in _SWAPS_SIDES else image.size
    if mask_size != upright_size:
        raise DecodeError(
            f"its size {mask_size[0]} × {mask_size[1]} differs from its photo's {upright_size[0]} × {upright_size[1]}"
        )
    class_ids = Image.fromarray(_class_ids(image, table))
    stored_hw = size_hw[::-1] if orientation in _SWAPS_SIDES else size_hw
    return np.asarray(_upright(class_ids.resize(stored_hw[::-1], Image.Resampling.NEAREST), orientation))


def _class_ids(image: Image.Image, table: np.ndarray) -> np.ndarray:
    """Raw values to class ids at the stored size, so that no value escapes the check by being resized away."""
    raw = np.asarray(image)
    if raw.ndim != 2 or raw.dtype.kind not in "bui":
        raise DecodeError(
            f"it is a colour image (mode {image.mode}); masks hold one number per pixel, as grey or indexed colour"
        )
    # Values outside the table are as unknown as uncovered ones inside it.
    ids = table[raw.astype(np.uint8)] if raw.dtype == bool else table[np.clip(raw, 0, len(table) - 1)]
    unknown = ids == labels.UNKNOWN_ID
    if raw.dtype.itemsize > 2:
        unknown |= (raw < 0) | (raw >= len(table))
    if unknown.any():
        raise UnknownValuesError(np.unique(raw[unknown]).astype(int).tolist())
    return ids


class UnknownValuesError(DecodeError):
    """A mask has values that no class covers: they are in `values`."""

    def __init__(self, values: list[int]) -> None:
        super().__init__(f"values that no class covers: {values}")
        self.values = values


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1..8; 1 (upright) also where it is missing, broken or not one of these."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, ValueError, KeyError, IndexError, TypeError, SyntaxError, struct.error):
        # Broken metadata says nothing of the pixels, which are still good.
        return 1
    return value if value in _TRANSPOSE else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; loads the pixels."""
    if image.mode == "F":
        raise DecodeError("its pixels are floating-point numbers of unknown scale; store it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow would clip values over 255 instead of scaling them
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("its pixels have more than 16 bits; store it with 8 or 16")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
