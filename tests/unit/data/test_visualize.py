"""Pictures that a report page shows: size and content. `test_decode.py` has the tests with stored photos."""

import io

import numpy as np
import pytest
from PIL import Image

from petseg.data import labels, visualize
from petseg.data.encode import encode_mask


def as_jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("num_classes", [2, 3, 5, 17, 254])
def test_layers_for_report_mask_keeps_class_ids_and_palette(num_classes: int) -> None:
    class_ids = np.full((600, 900), num_classes - 1, np.uint8)
    class_ids[:, :450] = 0
    class_ids[:300, 450:] = 255
    mask = encode_mask(class_ids, labels.palette(num_classes))
    photo, masks = visualize.layers_for_report(as_jpeg(np.zeros((600, 900, 3), np.uint8)), {"label": mask})
    small = opened(masks["label"])
    assert small.format == "PNG" and small.mode == "P" and small.getpalette() == opened(mask).getpalette()
    assert opened(photo).format == "JPEG" and small.size == opened(photo).size == (489, 326)
    found = np.asarray(small)
    assert np.unique(found).tolist() == [0, num_classes - 1, 255]
    middle = found.shape[1] // 2
    assert (found[:, :middle] == 0).all() and (found[:160, middle + 1 :] == 255).all()


def test_layers_for_report_mask_of_other_size_gets_the_photo_size() -> None:
    photo, masks = visualize.layers_for_report(
        as_jpeg(np.zeros((20, 30, 3), np.uint8)),
        {
            "a": encode_mask(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), labels.palette(3)),
            "b": encode_mask(np.ones((200, 300), np.uint8), labels.palette(3)),
        },
    )
    assert opened(photo).size == (30, 20)
    assert np.array_equal(np.asarray(opened(masks["a"])), np.array([[0, 1, 2], [2, 1, 0]]).repeat(10, 0).repeat(10, 1))
    assert opened(masks["b"]).size == (30, 20)
