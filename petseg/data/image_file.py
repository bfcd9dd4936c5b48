"""Open a user's image file: check its format and size, read its EXIF orientation, and translate Pillow's errors.

All calls that decode such a file are here. An exception from other code is a bug, not a broken file.
"""

import contextlib
import functools
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageFile

from petseg.data import heic

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
"""Pillow's names of the formats that it decodes. For some others, such as PDF, it would start other programs. HEIC is
decoded by pi-heif.
"""

MAX_SIDE = 65535
"""Longest side in pixels, JPEG's own limit. A longer and narrower image is not a photo, but costs as much as one."""

SWAPS_SIDES = {5, 6, 7, 8}
"""EXIF orientations whose upright image has the stored image's height as its width."""

_PILLOW_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(AttributeError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""Exceptions that Pillow raises for broken bytes. `MemoryError` is not listed: good photos can cause it, too."""

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
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = {b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UNKNOWN_TIFF = "a TIFF that is damaged, or whose kind of pixels cannot be read; store it with 8 or 16 bits"
_MOST_PAGES = 1000
_XMP = b"XML:com.adobe.xmp\0\0"  # keyword of a chunk iTXt, and the flag of text that is not compressed
_MAX_XMP_BYTES = 2**16


class DecodeError(ValueError):
    """Raised for bytes that are not a usable image; the message says why, without the file's name."""

    def __init__(self, message: str, in_mask: bool = False) -> None:
        super().__init__(message)
        self.in_mask = in_mask
        """True if the unusable image of a pair is the mask."""


class UnknownTiffError(DecodeError):
    """Raised for a TIFF with a kind of pixels that Pillow does not know."""


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


@dataclass(frozen=True)
class OpenImage:
    """An image file whose header was read."""

    image: ImageFile.ImageFile
    header: Header
    raw_mode: str
    """Pillow's name of the layout of the file's pixels, such as "RGB;16B"."""
    content: bytes

    @functools.cached_property
    def num_pages(self) -> int:
        """Number of pages or frames as large as the first one, at most 1000. Thumbnails do not count."""
        # The pages of an MPO are previews and depth maps, which cameras add.
        if self.image.format == "MPO" or not getattr(self.image, "is_animated", False):
            return 1
        try:
            with lift_pillow_limit():
                return _count_pages(_open(self.content))
        except (DecodeError, *_PILLOW_ERRORS):  # a broken page does not mean a broken first page
            return 1

    @property
    def has_wide_values(self) -> bool:
        """True if the pixels have more than 8 bits per channel."""
        return self.image.mode.startswith("I") or ";16" in self.raw_mode

    def load(self) -> None:
        """Decode the pixels of `image`. Raises `DecodeError` if they are damaged or incomplete."""
        with as_decode_errors():
            self.image.load()

    def open_as(self, raw_mode: str) -> "OpenImage":
        """Return the file opened once more, to decode its pixels with another layout."""
        image = _open(self.content)
        image.tile = [
            tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
            for tile in image.tile
        ]
        return OpenImage(image, self.header, raw_mode, self.content)


def open_image(content: bytes, max_pixels: int) -> OpenImage:
    """Open an image without decoding its pixels, except that Pillow decodes a PNG to find its orientation.

    Raises `DecodeError` if the content is empty, has none of the formats, or exceeds `MAX_SIDE` or `max_pixels`.
    """
    if not content:
        raise DecodeError("the file is empty")
    content = _without_metadata(content)
    image = _open(content)
    if max(image.size) > MAX_SIDE:
        raise DecodeError(f"{image.width} × {image.height} pixels: a side is longer than {MAX_SIDE}")
    if image.width * image.height > max_pixels:
        raise DecodeError(f"{image.width} × {image.height} pixels are more than the limit of {max_pixels}")
    if image.format == "HEIF" and (stored := heic.stored_pixels(content)) > max_pixels:
        raise DecodeError(f"it is cropped from {stored} pixels, more than the limit of {max_pixels}")
    # Look at the tiles before `_header_of`: reading EXIF may load the pixels, which clears the tiles.
    args = image.tile[0].args if image.tile else ""
    raw_mode = str(args[0] if isinstance(args, tuple) and args else args)
    return OpenImage(image, _header_of(image), raw_mode, content)


def _open(content: bytes) -> ImageFile.ImageFile:
    is_heic = heic.is_heic(content)
    if is_heic and not heic.is_installed():
        raise DecodeError(f"HEIC, which needs pi-heif: {heic.REMEDY}, on every node")
    try:
        with as_decode_errors():
            if is_heic:
                return heic.open_heic(content)
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        if content.startswith(_TIFF_SIGNATURES):
            raise UnknownTiffError(_UNKNOWN_TIFF) from error
        kinds = ", ".join(FORMATS)
        raise DecodeError(f"not an image that can be read ({kinds}); it starts with {content[:8]!r}") from error


def _count_pages(image: ImageFile.ImageFile) -> int:
    number = min(getattr(image, "n_frames", 1), _MOST_PAGES)
    if image.format != "TIFF":  # frames of an animation have one size
        return number
    first, count = image.size, 1
    for page in range(1, number):
        image.seek(page)
        count += image.size == first
    return count


def _header_of(image: ImageFile.ImageFile) -> Header:
    """Return an image's `Header`. The orientation is 1 (upright) if the tag is missing, broken or not one of 1..8."""
    try:
        with lift_pillow_limit():
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _PILLOW_ERRORS:  # broken metadata does not mean broken pixels
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


@contextlib.contextmanager
def as_decode_errors() -> Iterator[None]:
    """Turn the exceptions that Pillow raises for broken bytes into `DecodeError`. `UnidentifiedImageError` passes."""
    try:
        with lift_pillow_limit():
            yield
    except Image.UnidentifiedImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise DecodeError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _without_metadata(content: bytes) -> bytes:
    """Return a PNG without the chunks that do not affect its pixels or orientation; other content unchanged.

    Pillow refuses a PNG whose texts or colour profile are large or damaged.
    """
    if not content.startswith(_PNG_SIGNATURE):
        return content
    kept, start, position = [], 0, len(_PNG_SIGNATURE)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        is_xmp = kind == b"iTXt" and length < _MAX_XMP_BYTES and content.startswith(_XMP, position + 8)
        if not (kind[:1].isupper() or kind in _PNG_CHUNKS or is_xmp):
            kept.append(content[start:position])
            start = end
        position = end
    return b"".join([*kept, content[start:]]) if kept else content


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
