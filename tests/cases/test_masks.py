"""Masks as other tools write them: which pixels get which class."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petseg.data.image_file import DecodeError
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.pairs import decode_pair, raw_values

TRUTH = np.repeat(np.repeat(np.array([[1, 2, 3], [3, 1, 2]], np.uint8), 8, 0), 8, 1)
"""Raw values 1, 2, 3 in fields of 8 × 8 pixels."""

NUMBERS = LabelMap.parse("", 3)
COLOURS = LabelMap.parse("#ff0000:0,#00ff00:1", 2)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def class_ids(mask: bytes, label_map: LabelMap) -> np.ndarray:
    photo = encoded(Image.new("RGB", TRUTH.shape[::-1]))
    return decode_pair(photo, mask, TRUTH.shape, label_map, 10**6)[1]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_mask_of_whole_numbers_in_a_wide_type_is_taken(dtype: type) -> None:
    mask = encoded(Image.fromarray(TRUTH.astype(dtype)), "TIFF")
    assert (class_ids(mask, NUMBERS) == TRUTH - 1).all()
    assert raw_values(mask, 10**6, 300) == ({1: 128, 2: 128, 3: 128}, False)


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf"), (2.0**40, "1.09951e+12")])
def test_mask_of_other_floats_is_refused_by_value(value: float, shown: str) -> None:
    pixels = TRUTH.astype(np.float32)
    pixels[3, 3] = value
    mask = encoded(Image.fromarray(pixels), "TIFF")
    with pytest.raises(
        DecodeError, match=rf"^it has the value {shown.replace('+', '.')}; raw values are whole numbers"
    ):
        class_ids(mask, NUMBERS)
    with pytest.raises(DecodeError, match="whole numbers"):
        raw_values(mask, 10**6, 300)


def test_mask_of_floats_with_a_value_of_no_class_is_refused_as_a_number() -> None:
    with pytest.raises(DecodeError, match="it has the value 4, but the classes cover 1, 2, 3"):
        class_ids(encoded(Image.fromarray((TRUTH + 1).astype(np.float32)), "TIFF"), NUMBERS)


def erased(mode: str) -> Image.Image:
    """Return a mask whose pixels of raw value 2 were erased: they keep a class's colour and are fully transparent."""
    colours = np.array([[0, 0, 0], [255, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[TRUTH]
    image = Image.fromarray(np.dstack([colours, np.where(TRUTH == 2, 0, 255).astype(np.uint8)]))
    if mode == "P":
        image = Image.fromarray(TRUTH, "P")
        image.putpalette([9, 9, 9, 255, 0, 0, 255, 0, 0, 0, 255, 0])
        image.info["transparency"] = bytes([255, 255, 0, 255])
    return image


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_mask_of_colours_fully_transparent_pixels_are_unlabelled(mode: str) -> None:
    mask = encoded(erased(mode))
    found = class_ids(mask, COLOURS)
    assert (found == np.choose(TRUTH - 1, [0, IGNORE_ID, 1])).all()
    assert raw_values(mask, 10**6, 300, as_colours=True) == ({0xFF0000: 128, 0x00FF00: 128}, True)


def test_mask_of_colours_translucent_pixels_keep_their_class() -> None:
    image = erased("RGBA")
    image.putalpha(Image.fromarray(np.where(TRUTH == 2, 1, 255).astype(np.uint8)))
    assert (class_ids(encoded(image), COLOURS) == np.choose(TRUTH - 1, [0, 0, 1])).all()


def test_mask_of_numbers_with_a_transparent_index_keeps_its_numbers() -> None:
    assert (class_ids(encoded(erased("P")), NUMBERS) == TRUTH - 1).all()
