"""Findings and suggested flags of a check, from hand-made results."""

import dataclasses
from typing import Any

import pyarrow as pa

from petseg.config.prepare import CheckConfig
from petseg.data import labels
from petseg.data.check import Disagreement, Row
from petseg.data.classes import Classes
from petseg.data.labels import LabelMap
from petseg.data.mask_values import Labels
from petseg.data.notes import WIDE_VALUES
from petseg.reports import findings
from petseg.reports.checked import Checked

PETS = Classes(("pet", "background", "border"), labels.palette(3), LabelMap.parse("", 3))


def with_map(label_map: LabelMap) -> Classes:
    return dataclasses.replace(PETS, label_map=label_map)


def test_train_flags_given_class_flags_are_kept() -> None:
    labels = Labels(dict.fromkeys([0, 1, 2, 254], 9), dict.fromkeys([0, 1, 2, 254], 1), False)
    given: dict[str, Any] = {"classes": "a,b,c", "ignore_label": "254", "split_file": ("train=x", "val=y"), "seed": 5}
    config = dataclasses.replace(CONFIG, **given)
    label_map = LabelMap.parse("", 3, ignore="254")
    flags = findings.train_flags(found([], {}, labels=labels, classes=with_map(label_map), config=config))
    expected = "--images i --masks m --classes a,b,c --label-map 0:0,1:1,2:2 --ignore-label 254"
    assert flags == [*expected.split(), "--split-file", "train=x", "val=y", "--seed", "5"]
    fitting = LabelMap.parse("0:0,1:1,2:2", 3, ignore="254")
    config = dataclasses.replace(config, label_map="0:0,1:1,2:2")
    kept = findings.train_flags(found([], {}, labels=labels, classes=with_map(fitting), config=config))
    assert sorted(kept) == sorted(flags)


def test_findings_colour_masks_are_one_finding() -> None:
    labels = Labels({0: 5, 0xFF0000: 5}, {0: 1, 0xFF0000: 1}, True)
    rows = [Row("a", values=labels.pixels, colours=True, error="it is a colour image"), Row("b", error="broken")]
    said = [str(finding) for finding in findings.find_problems(found(rows, {}, labels=labels, pairs=masks("a.png")))]
    assert len(said) == 2
    assert "; pass --num-classes 2 --label-map '#000000:0,#ff0000:1'" in said[0]
    assert said[1].startswith("1 pair cannot be used, such as broken; ")


def test_findings_jpeg_masks_get_no_suggested_label_map() -> None:
    counts = dict.fromkeys([0, 1, 2, 254, 255], 5)
    lossy = found([Row("a", is_lossy=True)], {}, labels=Labels(counts, counts, False), pairs=masks("a.JPG"))
    [finding] = findings.find_problems(lossy)
    assert finding.blocks_training and finding.remedy.endswith("save them again as PNG, from the originals")
    assert findings.train_flags(lossy) == ["--images", "i", "--masks", "m"]


def test_findings_unclear_masks_ask_for_the_flag_only_if_nothing_decides() -> None:
    turned = [Row("a", drawn="unclear"), Row("b", drawn="unclear"), Row("c")]
    [finding] = findings.find_problems(found(turned, {}))
    assert finding.blocks_training and "--masks-upright yes" in finding.remedy
    assert finding.what.startswith("2 masks of photos that EXIF turns, such as a: the sizes do not show")
    [finding] = findings.find_problems(found([*turned, Row("d", drawn="upright")], {}))
    assert not finding.blocks_training and "used as drawn on the upright photos" in finding.what
    config = dataclasses.replace(CONFIG, masks_upright="no")
    assert findings.find_problems(found(turned, {}, config=config)) == []
    assert findings.train_flags(found(turned, {}, config=config))[-2:] == ["--masks-upright", "no"]


def test_findings_split_with_ignored_pixels_only_is_named() -> None:
    rows = [Row("a", values={1: 5}), Row("b", values={255: 5}), Row("c", values={255: 9})]
    splits = {"a": "train", "b": "val", "c": "val"}
    [finding] = findings.find_problems(found(rows, splits))
    assert finding.blocks_training
    assert finding.what == "every pixel of all masks of the validation split is ignored, such as in b"
    assert findings.find_problems(found(rows, splits | {"a": "val", "b": "train", "c": "test"}))[0].what.count(
        "training"
    )


def test_findings_dark_photos_and_notes_are_named() -> None:
    rows = [Row("a", near_black=True), Row("b", notes=(WIDE_VALUES,)), Row("c", notes=(WIDE_VALUES,))]
    dark, wide = findings.find_problems(found(rows, {}))
    assert dark.what == "1 photo nearly black, such as a" and not dark.blocks_training
    assert wide.what == f"2 images, such as b: {WIDE_VALUES}" and not wide.blocks_training


def masks(name: str) -> pa.Table:
    return pa.table({"mask": [name]})


CONFIG = CheckConfig(images="i", masks="m", output="o")


def found(rows: list[Row], splits: dict[str, str], **changes: Any) -> Checked:
    counts = {1: 5, 2: 5, 3: 5}
    whole: dict[str, Any] = {"unpaired_photos": [], "unpaired_masks": [], "labels": Labels(counts, counts, False)}
    whole |= {
        "classes": PETS,
        "exact_duplicates": [],
        "near_duplicates": [],
        "skipped": {},
    }
    whole["pairs"] = masks("a.png")
    whole |= {"config": CONFIG, "rows": rows, "splits": splits}
    return Checked(**(whole | changes))


def test_findings_cross_split_duplicates_are_a_separate_finding() -> None:
    rows = [Row(name) for name in "abcde"]
    splits = {"a": "train", "b": "train", "c": "val", "d": "test"}
    checked = found(rows, splits, exact_duplicates=[(0, 1), (0, 2)], near_duplicates=[(1, 3, 2), (0, 4, 1)])
    assert checked.cross_split_duplicates() == [(0, 2), (1, 3)]
    said = [finding.what for finding in findings.find_problems(checked)]
    assert said == [
        "2 exact duplicates",
        "2 near-duplicates",
        "2 duplicates cross train/val/test: scores would be too optimistic",
    ]
    assert not any(finding.blocks_training for finding in findings.find_problems(checked))
    assert checked.duplicate_of() == {"b": "a", "c": "a", "d": "b", "e": "a"}
    splits = {"a": "val", "b": "train", "c": "val"}
    assert found(rows, splits, exact_duplicates=[(0, 2)], near_duplicates=[(1, 2, 1)]).duplicate_of() == {
        "c": "b"
    }  # a train/val duplicate is named before one within val


def test_findings_class_without_pixels_is_reported() -> None:
    counts = {1: 5, 2: 5}
    [finding] = findings.find_problems(found([], {}, labels=Labels(counts, counts, False)))
    assert str(finding) == "no pixel of border in any mask; check --label-map, --num-classes and --classes"


def test_label_errors_five_are_named_and_pairs_trained_on_are_counted() -> None:
    scored = {name: Disagreement(number / 2, True) for number, name in enumerate("abcdef")}
    named, hidden = findings.find_problems(found([], {}, disagreements=scored | {"g": Disagreement(9.0, False)}))
    worst = "f (2.50), e (2.00), d (1.50), c (1.00), b (0.50)"
    assert named.what == f"possible label errors, by the disagreement of the networks: {worst}"
    assert hidden.what.startswith("1 pair that every network of --checkpoint was trained on")
    assert not named.blocks_training and not hidden.blocks_training
    assert len(findings.find_problems(found([], {}, disagreements=scored))) == 1
