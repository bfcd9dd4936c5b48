import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petseg.data import decode
from petseg.data.mask_pixels import raw_values


def png(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_raw_values_grey_and_colour_masks_are_counted() -> None:
    grey = np.array([[0, 0, 7], [255, 7, 7]], np.uint8)
    assert raw_values(png(grey), 100, 10) == ({0: 2, 7: 3, 255: 1}, False)
    assert raw_values(png(grey), 100, 2) == ({0: 2, 7: 3}, False)
    assert raw_values(png(grey.astype(np.uint16) * 200), 100, 10) == ({0: 2, 1400: 3, 51000: 1}, False)
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0] = 255, 0, 16
    assert raw_values(png(colours), 100, 10) == ({0: 3, 0xFF0010: 1}, True)
    assert raw_values(png(grey), 100, 10, as_colours=True) == ({0: 2, 0x070707: 3, 0xFFFFFF: 1}, True)
    with pytest.raises(decode.DecodeError, match="not an image"):
        raw_values(b"text", 100, 10)
