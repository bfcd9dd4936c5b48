from pathlib import Path

import pyarrow as pa
from PIL import Image

from petseg.data import check
from petseg.data.labels import LabelMap
from petseg.data.mask_values import Labels, sum_values

TRIMAP = LabelMap.parse("", 3)


def test_class_pixels_values_outside_the_label_map_have_no_class() -> None:
    values = dict.fromkeys([-70000, -1, 1, 70000], 3)
    assert check.class_pixels(Labels(values, values, False), TRIMAP) == ([3, 0, 0], [3, 0, 0], 9)


def test_sum_values_pixels_are_summed_over_all_masks() -> None:
    numbers = [({1: 10, 2: 5, 255: 3}, False), ({1: 2, 9: 1}, False)]
    found = sum_values([*numbers, ({0xFF0000: 4}, True)])
    assert found == Labels({1: 12, 2: 5, 255: 3, 9: 1}, {1: 2, 2: 1, 255: 1, 9: 1}, colours=False)
    assert check.class_pixels(found, TRIMAP) == ([12, 5, 0], [2, 1, 0], 1)
    colours = LabelMap.parse("#ff0000:0,#000000:1", 2)
    assert check.class_pixels(found, colours) == ([0, 0], [0, 0], 21)


def test_scan_pairs_rotated_photo_and_palette_mask_are_valid(tmp_path: Path) -> None:
    """The photo is rotated by EXIF. The mask has a palette, and its label map has colours."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    mask = Image.new("P", (40, 30))
    mask.putpalette([255, 0, 0, 0, 0, 255])
    mask.paste(1, (0, 0, 10, 30))
    mask.save(tmp_path / "a.png")
    pairs = pa.table({"id": ["a"], "image": [str(tmp_path / "a.jpg")], "mask": [str(tmp_path / "a.png")]})
    colours = LabelMap.parse("#ff0000:0,#0000ff:1", 2)
    [row] = check.scan_pairs(pairs, colours, 10_000)
    assert (row.error, row.height, row.width, row.orientation) == (None, 40, 30, 6)
    assert row.values is not None
    assert check.class_pixels(sum_values([(row.values, row.colours)]), colours) == ([900, 300], [1, 1], 0)
