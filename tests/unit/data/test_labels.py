import numpy as np
import pytest

from petseg.data import labels
from petseg.data.labels import IGNORE_ID, UNKNOWN_ID, LabelMap
from petseg.errors import InputError


def test_parse_empty_text_is_the_trimap_label_map() -> None:
    label_map = LabelMap.parse("", 3)
    assert label_map.ids == {1: 0, 2: 1, 3: 2, 255: IGNORE_ID}
    assert label_map.table[[0, 1, 2, 3, 4, 255]].tolist() == [UNKNOWN_ID, 0, 1, 2, UNKNOWN_ID, IGNORE_ID]
    assert label_map.table.dtype == np.uint8


def test_parse_text_round_trip_is_equal() -> None:
    label_map = LabelMap.parse("0:1, 255:0,7:255,300:2", 3)
    assert label_map.ids == {0: 1, 7: IGNORE_ID, 255: 0, 300: 2}
    assert LabelMap.parse(str(label_map), 3) == label_map


def test_parse_colours_and_class_names_are_mapped() -> None:
    names = labels.class_names(text="cat, dog,ground")
    label_map = LabelMap.parse("#FF0000:dog,#00ff01:cat,#000000:2", 3, names, ignore="#ffffff,#e0e0c0")
    assert names == ("cat", "dog", "ground") and label_map.colours
    assert label_map.ids == {0xFF0000: 1, 0x00FF01: 0, 0: 2, 0xFFFFFF: IGNORE_ID, 0xE0E0C0: IGNORE_ID}
    assert label_map.table[[0xFF0000, 0x0000FF, 0xFFFFFF]].tolist() == [1, UNKNOWN_ID, IGNORE_ID]
    assert LabelMap.parse(str(label_map), 3) == label_map
    assert label_map.explain_unknown([0xFF]).startswith(
        "it has the value #0000ff, but the classes cover #000000, #00ff01, #ff"
    )


def test_parse_ignore_values_replace_the_default() -> None:
    assert LabelMap.parse("", 2, ignore="0,9").ids == {1: 0, 2: 1, 0: IGNORE_ID, 9: IGNORE_ID}  # and not 255


@pytest.mark.parametrize(
    ("text", "ignore", "message"),
    [
        ("#ff0000:0,1:1", "", "numbers and colours"),
        ("#ff0000:0,#00ff00:1", "255", "numbers and colours"),
        ("#ff00:0,#00ff00:1", "", "--label-map: '#ff00:0' is not"),
        ("0:cat,1:fish", "", "'1:fish' is not .* 0 to 1 or one of cat, dog, and 255"),
        ("0:0,1:1", "x", "--ignore-label: 'x' is neither"),
        ("0:0,1:1", "1", "--ignore-label: 1 is a class in --label-map"),
    ],
)
def test_parse_invalid_colours_or_ignore_values_are_refused(text: str, ignore: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelMap.parse(text, 2, ("cat", "dog"), ignore)


@pytest.mark.parametrize(
    ("text", "num_classes", "message"),
    [
        ("cat,cat", None, "a name of its own"),
        ("cat,,dog", None, "a name of its own"),
        ("cat", None, "give 2 to 254 names"),
        ("cat,dog", 3, "--num-classes 3: --classes has 2 names"),
    ],
)
def test_class_names_duplicate_empty_or_wrong_count_is_refused(
    text: str, num_classes: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        labels.class_names(num_classes, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "--label-map: '1' is not \"raw value:class\""),
        ("a:0", "--label-map: 'a:0' is not"),
        ("-1:0", "--label-map: '-1:0' is not"),
        ("0:3,1:1,2:2", "classes from 0 to 2, and 255"),
        ("70000:0", "raw values go from 0 to 65535"),
        ("0:0,0:1,1:2", "the raw value 0 is given twice"),
        ("0:0,1:1", "no raw value gives class 2 of 3"),
    ],
)
def test_parse_invalid_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelMap.parse(text, 3)


def test_refusal_names_unknown_values_and_a_remedy() -> None:
    label_map = LabelMap.parse("", 3)
    assert "value 0, but the classes cover 1, 2, 3; if your masks count from 0" in label_map.explain_unknown([0])
    assert "--label-map 0:0,1:1,2:2" in label_map.explain_unknown([0])
    assert "value 4, 9, but the classes cover 1, 2, 3; pass --label-map" in label_map.explain_unknown([4, 9])
    assert "0, 1, 2, 3, 4, 5, 6, 7, …" in label_map.explain_unknown(list(range(100)))


@pytest.mark.parametrize("num_classes", [2, 3, 5, 20])
def test_default_names_and_palette_are_distinct(num_classes: int) -> None:
    assert len(set(labels.class_names(num_classes))) == num_classes
    palette = labels.palette(num_classes)
    assert len(set(palette)) == num_classes
    assert all(0 <= channel <= 255 for colour in palette for channel in colour)
