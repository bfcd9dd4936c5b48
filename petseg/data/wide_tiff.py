"""Read masks in TIFF files of 64-bit numbers, the default types of NumPy. Pillow cannot open them."""

import io

import numpy as np
from PIL import Image, TiffImagePlugin

from petseg.data.image_file import DecodeError, UnknownTiffError, as_decode_errors

_ORIENTATION_TAG = 0x0112


def narrow(content: bytes, unknown: UnknownTiffError, max_pixels: int) -> bytes:
    """Return a TIFF of integers or floating-point numbers, of any size, as one of 32 bits.

    Raises `unknown` if the file holds anything else, such as colours. Raises `DecodeError` if it has more than
    `max_pixels` pixels or several pages, is damaged, or has an integer of more than 31 bits.
    """
    import tifffile  # here, because few masks need it

    with as_decode_errors():
        file = tifffile.TiffFile(io.BytesIO(content))
        page, pages = file.pages.first, len(file.pages)
        shape, dtype = page.shape, page.dtype
        orientation = page.tags.get(_ORIENTATION_TAG)
    if dtype is None or dtype.kind not in "iuf" or len(shape) != 2:
        raise unknown
    if pages > 1:
        raise DecodeError(f"it has {pages} pages; a mask has one")
    if shape[0] * shape[1] > max_pixels:
        raise DecodeError(f"{shape[1]} × {shape[0]} pixels are more than the limit of {max_pixels}")
    with as_decode_errors():
        values = page.asarray()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if orientation is not None:
        tags[_ORIENTATION_TAG] = orientation.value
    if dtype.kind != "f":
        bad = (values < 0) | (values >= 2**31)
        if bad.any():
            raise DecodeError(f"it has the value {values[bad][0]}; raw values go from 0 to 65535")
    with np.errstate(over="ignore"):  # infinity is no raw value either
        narrowed_values = values.astype(np.float32 if dtype.kind == "f" else np.int32)
    narrowed = io.BytesIO()
    Image.fromarray(narrowed_values).save(narrowed, "TIFF", tiffinfo=tags)
    return narrowed.getvalue()
