"""Masks as other tools write them: which pixels get which class."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from petseg.config.train import TrainConfig
from petseg.data.classes import resolve_classes
from petseg.data.image_file import DecodeError
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.mask_pixels import raw_values
from petseg.data.pairs import decode_pair

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
    return decode_pair(photo, mask, TRUTH.shape, label_map, 10**6).class_ids


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


def wide_tiff(pixels: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, pixels, **options)
    return content.getvalue()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint32])
def test_mask_of_64_bit_integers_is_taken(dtype: type, compression: str | None) -> None:
    mask = wide_tiff(TRUTH.astype(dtype), compression=compression)
    assert (class_ids(mask, NUMBERS) == TRUTH - 1).all()
    assert raw_values(mask, 10**6, 300) == ({1: 128, 2: 128, 3: 128}, False)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_mask_of_whole_numbers_in_another_float_is_taken(dtype: type) -> None:
    assert (class_ids(wide_tiff(TRUTH.astype(dtype)), NUMBERS) == TRUTH - 1).all()
    with pytest.raises(DecodeError, match=r"it has the value 1.5; raw values are whole numbers"):
        class_ids(wide_tiff((TRUTH + 0.5).astype(dtype)), NUMBERS)
    with pytest.raises(DecodeError, match="it has the value inf"):
        class_ids(wide_tiff(np.where(TRUTH == 1, np.inf, TRUTH).astype(dtype)), NUMBERS)


def test_mask_in_which_0_is_white_keeps_its_stored_numbers() -> None:
    """tifffile writes a mask of booleans like this. Pillow inverts it."""
    binary = LabelMap.parse("0:0,1:1", 2)
    assert (class_ids(wide_tiff(TRUTH == 2), binary) == (TRUTH == 2)).all()
    assert raw_values(wide_tiff(TRUTH == 2), 10**6, 300) == ({0: 256, 1: 128}, False)
    white = wide_tiff(TRUTH, photometric="miniswhite")
    assert (class_ids(white, NUMBERS) == TRUTH - 1).all()
    assert raw_values(white, 10**6, 300) == ({1: 128, 2: 128, 3: 128}, False)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [2, 4])
def test_mask_of_few_bits_in_a_tiff_keeps_its_stored_numbers(bits: int, photometric: int) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    mask = encoded(Image.fromarray(TRUTH), "TIFF", tiffinfo=tags)
    per_byte = 8 // bits
    packed = np.zeros((TRUTH.shape[0], TRUTH.shape[1] // per_byte), np.uint8)
    for place in range(per_byte):
        packed |= TRUTH[:, place::per_byte] << (8 - bits * (place + 1))
    mask = mask.replace(TRUTH.tobytes(), packed.tobytes())
    opened = tifffile.TiffFile(io.BytesIO(mask))
    content = bytearray(mask)
    for name, value in (("BitsPerSample", bits), ("PhotometricInterpretation", photometric)):
        offset = opened.pages.first.tags[name].valueoffset
        content[offset : offset + 2] = value.to_bytes(2, "little")
    assert (class_ids(bytes(content), NUMBERS) == TRUTH - 1).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (wide_tiff(TRUTH.astype(np.int64) - 9), "it has the value -8; raw values go from 0 to 65535"),
        (wide_tiff(TRUTH.astype(np.int64) + 1), "it has the value 4, but the classes cover 1, 2, 3"),
        (wide_tiff(TRUTH.astype(np.complex64)), "kind of pixels cannot be read"),
        (wide_tiff(TRUTH.astype(np.int64))[:200], "kind of pixels cannot be read|Error"),
        (wide_tiff(np.zeros((2000, 2000), np.int64), compression="zlib"), "2000 × 2000 pixels are more than the limit"),
        (wide_tiff(np.stack([TRUTH.astype(np.int64)] * 2)), "it has 2 pages"),
    ],
)
def test_mask_of_64_bit_integers_otherwise_is_refused(mask: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        class_ids(mask, NUMBERS)
    assert caught.value.in_mask


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_mask_with_a_page_per_class_is_refused(kind: str) -> None:
    pages = [Image.fromarray(np.equal(TRUTH, value).astype(np.uint8)) for value in (1, 2, 3)]
    mask = encoded(pages[0], kind, save_all=True, append_images=pages[1:])
    with pytest.raises(DecodeError, match=r"it has 3 pages, .* merge them into one image"):
        class_ids(mask, LabelMap.parse("0:0,1:1", 2))


def test_mask_as_jpeg_is_refused_for_that_reason() -> None:
    noise = np.random.default_rng(0).integers(0, 2, TRUTH.shape, np.uint8) * 255
    lossy = encoded(Image.fromarray(noise), "JPEG")
    with pytest.raises(DecodeError, match=r"masks as JPEG are not exact: .* save them again as PNG"):
        class_ids(lossy, LabelMap.parse("0:0,255:1", 2))


def test_mask_as_jpeg_without_other_values_is_taken() -> None:
    assert (class_ids(encoded(Image.new("L", TRUTH.shape[::-1], 2), "JPEG"), NUMBERS) == 1).all()


def write_masks(folder: Path, *masks: np.ndarray) -> pa.Table:
    """Write masks, and return their manifest without photos."""
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{number}.png")
    return pa.table({"mask": [str(folder / f"{number}.png") for number in range(len(masks))]})


@pytest.mark.parametrize(
    ("masks", "flags", "names", "ids"),
    [
        ([TRUTH], TrainConfig(), 3, "1:0,2:1,3:2,255:255"),
        ([TRUTH - 1], TrainConfig(), 3, "0:0,1:1,2:2,255:255"),
        ([TRUTH - 1, TRUTH], TrainConfig(), 4, "0:0,1:1,2:2,3:3,255:255"),
        ([TRUTH % 2], TrainConfig(), 2, "0:0,1:1,255:255"),
        ([TRUTH % 2], TrainConfig(num_classes=3), 3, "0:0,1:1,2:2,255:255"),
        ([TRUTH - 1], TrainConfig(classes="a,b,c"), 3, "0:0,1:1,2:2,255:255"),
        ([TRUTH - 1], TrainConfig(ignore_label="0"), 2, "0:255,1:0,2:1"),
        ([TRUTH * 7], TrainConfig(), 3, "1:0,2:1,3:2,255:255"),  # with a gap: refused when the pairs are decoded
        ([TRUTH - 1], TrainConfig(num_classes=2), 2, "1:0,2:1,255:255"),  # too few: refused, too
    ],
)
def test_values_in_the_masks_are_the_classes_in_order(
    masks: list[np.ndarray],
    flags: TrainConfig,
    names: int,
    ids: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    classes = resolve_classes(flags, str(tmp_path), write_masks(tmp_path, *masks))
    assert (len(classes.names), str(classes.label_map)) == (names, ids)
    noted = "used as --label-map" in capsys.readouterr().out
    assert noted == (ids not in ("1:0,2:1,3:2,255:255", "1:0,2:1,255:255"))


def test_values_are_not_looked_at_if_the_label_map_is_given(tmp_path: Path) -> None:
    missing = pa.table({"mask": [str(tmp_path / "missing.png")]})
    assert str(resolve_classes(TrainConfig(label_map="0:0,7:1", num_classes=2), str(tmp_path), missing).label_map) == (
        "0:0,7:1,255:255"
    )
