"""The check report: each section and each finding, from a hand-made result."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from petseg.config.prepare import CheckConfig
from petseg.data import duplicates, labels
from petseg.data.check import Disagreement, Row
from petseg.data.classes import Classes
from petseg.data.encode import encode_mask
from petseg.data.labels import LabelMap
from petseg.data.mask_values import Labels
from petseg.reports import check
from petseg.reports.checked import Checked
from petseg.reports.findings import Finding, find_problems

CLASSES = ("pet", "background", "border")
COUNTS = {1: 60, 2: 30, 3: 10}


def checked(**changes: Any) -> Checked:
    whole: dict[str, Any] = {
        "config": CheckConfig(images="i", masks="m", output="o"),
        "pairs": pa.table({"id": ["a"], "image": ["i/a.jpg"], "mask": ["m/a.png"]}),
        "rows": [Row("a"), Row("b"), Row("c")],
        "unpaired_photos": [],
        "unpaired_masks": [],
        "splits": {"a": "train", "b": "val"},
        "labels": Labels(COUNTS, {1: 2, 2: 2, 3: 1}, False),
        "classes": Classes(CLASSES, labels.palette(3), LabelMap.parse("", 3)),
        "exact_duplicates": [],
        "near_duplicates": [],
        "skipped": {},
    }
    return Checked(**(whole | changes))


def test_findings_valid_set_has_none() -> None:
    assert find_problems(checked()) == []


@pytest.mark.parametrize(
    ("changes", "text", "blocks_training"),
    [
        (
            {"unpaired_photos": ["x"]},
            "1 photo without a mask, such as x; add the missing masks to m, or move these photos away",
            True,
        ),
        (
            {"unpaired_masks": ["y"] * 1200},
            "1,200 masks without a photo, such as y; add the missing photos to i, or move these masks away",
            True,
        ),
        (
            {"labels": Labels({0: 5, 255: 5}, {0: 1, 255: 1}, False)},
            "the masks have values that no class covers (values 0, 255; label map 1:0,2:1,3:2,255:255); "
            "pass --num-classes 2 --label-map 0:0,255:1",
            True,
        ),
        (
            {"rows": [Row("a", error="broken"), Row("b", error="empty")]},
            "2 pairs cannot be used, such as broken; fix or remove them; the report lists them",
            True,
        ),
        (
            {"labels": Labels({1: 5, 3: 1}, {1: 1, 3: 1}, False)},
            "no pixel of background in any mask; check --label-map, --num-classes and --classes",
            False,
        ),
        (
            {"exact_duplicates": [(0, 2)]},
            "1 exact duplicate; keep one of each; check.parquet names them in the column like",
            False,
        ),
        (
            {"near_duplicates": [(0, 2, 1), (1, 2, 3)]},
            "1 near-duplicate; compare them in the report; check.parquet names all in the column like",
            False,
        ),
    ],
)
def test_findings_each_problem_has_its_remedy(changes: dict[str, Any], text: str, blocks_training: bool) -> None:
    [finding] = find_problems(checked(**changes))
    assert (str(finding), finding.blocks_training) == (text, blocks_training)


def test_findings_duplicate_in_two_splits_is_reported() -> None:
    *_, finding = find_problems(checked(exact_duplicates=[(0, 1)]))
    assert finding.what == "1 duplicate crosses train/val/test: scores would be too optimistic"


def test_findings_stopped_near_duplicate_search_says_there_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 1)
    [finding] = find_problems(checked(near_duplicates=[(0, 2, 1)]))
    assert finding.remedy.endswith("; there are more, because the search stopped at this number")


def test_findings_table_refusals_and_warnings_are_distinguished() -> None:
    table = check._findings_table([Finding("a", "b", blocks_training=True), Finding("c", "d", blocks_training=False)])
    assert list(table.rows) == [["a", "b", "refuses"], ["c", "d", "starts"]]
    assert list(check._findings_table([]).rows) == [["no findings", "", "starts"]]


def test_class_bars_three_classes_show_fractions_and_masks() -> None:
    assert check._class_shares(checked()).values == {"pet": 60.0, "background": 30.0, "border": 10.0}
    assert check._masks_by_class(checked()).values == {"pet": 2, "background": 2, "border": 1}


def test_values_table_ignored_and_unknown_values_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {1: 50, 255: 30, 9: 20}
    result = checked(labels=Labels(some, dict.fromkeys(some, 1), False))
    rows = [["1", "pet", "50.00 %", "50", "1"], ["255", "ignored", "30.00 %", "30", "1"]]
    assert check._values_table(result).rows == [*rows, ["9", "no class", "20.00 %", "20", "1"]]
    monkeypatch.setattr(check, "_VALUES", 2)
    table = check._values_table(result)
    assert (table.rows, table.note) == (rows, "The most frequent of 3.")


def test_sizes_table_more_sizes_than_shown_are_counted() -> None:
    rows = [Row("x", width=5, height=4), *(Row("y", width=number, height=4) for number in range(1, 14)), Row("z")]
    table = check._sizes_table(checked(rows=rows))
    assert table.rows[0] == ["5 × 4", "2"]
    assert (len(table.rows), table.note) == (12, "13 sizes in all.")


def test_unusable_table_more_than_listed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check._unusable_table(checked()) is None
    monkeypatch.setattr(check, "_LISTED", 1)
    table = check._unusable_table(checked(rows=[Row("a", error="broken"), Row("b"), Row("c", error="empty")]))
    assert table is not None
    assert (table.rows, table.note) == ([["a", "broken"]], "… and 1 more: see check.parquet.")


def test_unpaired_table_names_are_listed() -> None:
    assert check._unpaired_table("t", []) is None
    table = check._unpaired_table("t", ["a", "b"])
    assert table is not None and (table.title, table.rows, table.note) == ("t", [["a"], ["b"]], "")


def test_summary_rotated_photo_and_duplicates_are_counted() -> None:
    rows = [Row("a", orientation=6), Row("b", orientation=1), Row("c", error="broken")]
    result = checked(rows=rows, unpaired_masks=["m"], exact_duplicates=[(0, 1)], near_duplicates=[(0, 2, 1)])
    assert check._summary(result) == [
        ("pairs", "1"),
        ("cannot be used", "1"),
        ("without a partner", "1"),
        ("turned by EXIF", "1"),
        ("duplicates", "2"),
        ("pairs, train", "1"),
        ("pairs, val", "1"),
    ]


def test_commands_next_command_is_last() -> None:
    assert check._commands("petseg train").lines[-1] == "petseg train"


@pytest.fixture
def on_disk(tmp_path: Path) -> Checked:
    """Result for two pairs on disk and a third whose photo is missing."""
    for name in "ab":
        Image.new("RGB", (40, 30), "green").save(tmp_path / f"{name}.jpg")
        Image.fromarray(np.ones((30, 40), np.uint8)).save(tmp_path / f"{name}.png")
    names = ["a", "b", "c"]
    columns = {
        "image": [f"{tmp_path}/{name}.jpg" for name in names],
        "mask": [f"{tmp_path}/{name}.png" for name in names],
    }
    return checked(pairs=pa.table({"id": names, **columns}))


def test_samples_gallery_missing_photo_or_mask_is_skipped(on_disk: Checked) -> None:
    gallery = check._gallery(on_disk)
    assert gallery is not None and [item.id for item in gallery.items] == ["a", "b"]
    assert gallery.items[0].link == on_disk.pairs["image"][0].as_py()
    Path(on_disk.pairs["mask"][1].as_py()).unlink()
    gallery = check._gallery(on_disk)
    assert gallery is not None and [item.id for item in gallery.items] == ["a"]
    assert check._gallery(dataclasses.replace(on_disk, rows=[Row("a", error="broken")])) is None


def test_samples_gallery_classes_are_those_of_the_mask(on_disk: Checked) -> None:
    label = np.repeat(np.array([[1, 3, 255]], np.uint8), 30, 0).repeat([20, 10, 10], 1)
    Image.fromarray(label).save(on_disk.pairs["mask"][0].as_py())
    gallery = check._gallery(on_disk)
    assert gallery is not None and [item.classes for item in gallery.items] == [["pet", "border"], ["pet"]]
    shown = np.asarray(Image.open(io.BytesIO(gallery.items[0].masks["label"])))
    assert np.array_equal(shown, np.where(label == 255, 255, label - 1))
    assert gallery.colours == dict(zip(CLASSES, labels.palette(3), strict=True))


def test_duplicates_sheet_each_pair_names_its_splits(on_disk: Checked) -> None:
    sheet = check._duplicates_sheet("t", on_disk, [(0, 1), (0, 2)])
    assert sheet is not None and [picture.caption for picture in sheet.pictures] == ["a and b (train, val)"]
    assert check._duplicates_sheet("t", on_disk, [(0, 2)]) is None
    many = check._duplicates_sheet("t", on_disk, [(0, 1)] * 13)
    assert many is not None and many.note == "12 of 13; all are in check.parquet, column like."


def test_gallery_of_label_errors_worst_first_and_trained_ones_last(on_disk: Checked) -> None:
    """The two masks of a pair have one size, also where the prediction of another photo is missing."""
    found = {"a": Disagreement(9.0, False), "b": Disagreement(1.25, True), "c": Disagreement(2.5, True)}
    predicted = encode_mask(np.full((30, 40), 2, np.uint8), labels.palette(3))
    gallery = check._gallery(dataclasses.replace(on_disk, disagreements=found, predictions={"b": predicted}))
    assert gallery is not None and gallery.title == "Possible label errors"
    assert [(item.id, item.score) for item in gallery.items] == [("b", 1.25), ("a", 9.0)]
    assert [list(item.masks) for item in gallery.items] == [["label", "prediction"], ["label"]]
    assert (np.asarray(Image.open(io.BytesIO(gallery.items[0].masks["prediction"]))) == 2).all()
    assert [item.caption for item in gallery.items] == ["", "A network was trained on this pair."]


def test_page_empty_sections_are_left_out(on_disk: Checked) -> None:
    text = check.page(on_disk, [], {"seed": 5}, "petseg train").decode()
    assert ">Samples</h2>" in text and "petseg train" in text
    assert "Duplicates" not in text and "label errors" not in text and "without a mask" not in text
    text = check.page(dataclasses.replace(on_disk, exact_duplicates=[(0, 1)]), [], {}, "").decode()
    assert ">Duplicates across train/val/test</h2>" in text and ">Duplicates</h2>" in text
