import io

import numpy as np
import pytest
from PIL import Image

from petseg.data import labels
from petseg.data.encode import encode_mask


@pytest.mark.parametrize("num_classes", [2, 3, 5, 16, 17, 254])
def test_encode_mask_ignored_pixels_stay_255(num_classes: int) -> None:
    """Pillow stores as few bits as the palette needs."""
    mask = np.array([[0, num_classes - 1, 255]], np.uint8)
    with Image.open(io.BytesIO(encode_mask(mask, labels.palette(num_classes)))) as found:
        assert found.mode == "P" and np.array_equal(np.asarray(found), mask)
    with Image.open(io.BytesIO(encode_mask(mask[:, :2], labels.palette(num_classes)))) as found:
        assert np.array_equal(np.asarray(found), mask[:, :2])
