from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from petseg.data import check
from petseg.data.check import Labels, Row
from petseg.data.labels import LabelMap

TRIMAP = LabelMap.parse("", 3)


@pytest.mark.parametrize(
    ("values", "colours", "flags"),
    [
        ([1, 2, 3], False, "--num-classes 3"),
        ([1, 2, 255], False, "--num-classes 2"),
        ([0, 1], False, "--num-classes 2 --label-map 0:0,1:1"),
        ([0, 1, 2, 255], False, "--num-classes 3 --label-map 0:0,1:1,2:2"),
        ([0, 255], False, "--num-classes 2 --label-map 0:0,255:1"),
        ([10, 20], False, "--num-classes 2 --label-map 10:0,20:1"),
        ([0, 0xFF0000], True, "--num-classes 2 --label-map #000000:0,#ff0000:1"),
        (list(range(200)), False, None),
        ([5], False, None),
        ([], False, None),
        ([0, 70000], False, None),
        ([-1, 0, 1], False, None),
        ([0, 255], True, "--num-classes 2 --label-map #000000:0,#0000ff:1"),
    ],
)
def test_suggest_flags_cover_the_values(values: list[int], colours: bool, flags: str | None) -> None:
    counts = dict.fromkeys(values, 9)
    suggested = check.suggest(Labels(counts, counts, colours))
    assert suggested == (flags.split() if flags else None)
    if suggested:  # check that they do cover the values
        text = suggested[3] if len(suggested) > 2 else ""
        label_map = LabelMap.parse(text, int(suggested[1]))
        assert check.class_pixels(Labels(counts, counts, colours), label_map)[2] == 0


def test_class_pixels_values_outside_the_label_map_have_no_class() -> None:
    values = dict.fromkeys([-70000, -1, 1, 70000], 3)
    assert check.class_pixels(Labels(values, values, False), TRIMAP) == ([3, 0, 0], [3, 0, 0], 9)


def test_labels_of_pixels_are_summed_over_all_masks() -> None:
    rows = [Row("a", values={1: 10, 2: 5, 255: 3}), Row("b", values={1: 2, 9: 1}), Row("c", error="broken")]
    found = check.labels_of([*rows, Row("d", values={0xFF0000: 4}, colours=True)])
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
    assert check.class_pixels(check.labels_of([row]), colours) == ([900, 300], [1, 1], 0)
