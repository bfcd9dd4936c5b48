"""HEIC photos, as phones take them, through the optional pi-heif. Nothing is registered with Pillow.

pi-heif turns a photo upright by the file's properties irot and imir, and sets its EXIF orientation to 1: by the
standard of HEIF, EXIF does not turn a photo.
"""

import importlib.util
import io
import re
import struct

from PIL import ImageFile

EXTENSIONS = {".heic", ".heif"}
"""Extensions of files that count as images only if pi-heif is installed."""

REMEDY = "pip install pi-heif"
"""Command that makes HEIC photos readable, for messages."""

_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_OTHER_BRANDS = {b"avif", b"avis"}  # AVIF files have mif1, too; Pillow decodes them
_MOST_BRANDS = 64
_SIZE = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)  # the box of an item's size before cropping


def is_installed() -> bool:
    """Return True if HEIC photos can be opened."""
    return importlib.util.find_spec("pi_heif") is not None


def is_heic(content: bytes) -> bool:
    """Return True if a file is HEIF with pictures in HEVC, by the brands at its start."""
    if content[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(content[:4], "big"), 4 * _MOST_BRANDS)
    brands = {content[start : start + 4] for start in range(8, end, 4)}
    return bool(brands & _BRANDS) and not brands & _OTHER_BRANDS


def stored_pixels(content: bytes) -> int:
    """Return the number of pixels of the file's largest picture, which is decoded whole even if it is cropped."""
    sizes = (struct.unpack(">II", found[1]) for found in _SIZE.finditer(content))
    return max((width * height for width, height in sizes), default=0)


def open_heic(content: bytes) -> ImageFile.ImageFile:
    """Open a HEIC photo without decoding it. Raises `SyntaxError` if it is damaged, as Pillow's own plugins do."""
    from pi_heif import HeifImageFile  # here, because it is optional

    return HeifImageFile(io.BytesIO(content))
