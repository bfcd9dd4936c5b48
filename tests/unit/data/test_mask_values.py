import pytest

from petseg.data import check, mask_values
from petseg.data.labels import LabelMap
from petseg.data.mask_values import Labels


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
    suggested = mask_values.suggest(Labels(counts, counts, colours))
    assert suggested == (flags.split() if flags else None)
    if suggested:  # check that they do cover the values
        text = suggested[3] if len(suggested) > 2 else ""
        label_map = LabelMap.parse(text, int(suggested[1]))
        assert check.class_pixels(Labels(counts, counts, colours), label_map)[2] == 0


@pytest.mark.parametrize(
    ("values", "colours", "found"),
    [
        ([0, 1], False, (0, 2)),
        ([0, 1, 2, 255], False, (0, 3)),
        ([1, 2, 3, 4], False, (1, 4)),
        ([0, 255], False, None),
        ([0, 2], False, None),
        ([2, 3], False, None),
        ([0], False, None),
        ([0, 1], True, None),
    ],
)
def test_first_value_only_numbers_without_a_gap(
    values: list[int], colours: bool, found: tuple[int, int] | None
) -> None:
    counts = dict.fromkeys(values, 9)
    assert mask_values.first_value(Labels(counts, counts, colours)) == found


def test_first_value_ignored_values_do_not_count() -> None:
    counts = dict.fromkeys([0, 1, 2, 9], 5)
    assert mask_values.first_value(Labels(counts, counts, False), {9}) == (0, 3)
    assert mask_values.first_value(Labels(counts, counts, False), {0, 9}) == (1, 2)
