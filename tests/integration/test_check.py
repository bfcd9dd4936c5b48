"""`jobs/prepare.py check`: what it finds in a folder, what it says, and that a set that is fine passes."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, RunJob
from PIL import Image

from petseg.config.prepare import CheckConfig
from petseg.data import check, decode, duplicates, manifest
from petseg.data.check import Labels, Row
from petseg.data.labels import LabelMap
from petseg.data.pairs import raw_values
from petseg.reports import check as check_report

TRIMAP = LabelMap.parse("", 3)


def test_the_hash_says_where_it_gets_brighter() -> None:
    rising = Image.fromarray(np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1)))
    assert duplicates.difference_hash(rising) == 2**64 - 1
    assert duplicates.difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    assert duplicates.difference_hash(Image.new("RGB", (50, 50), (9, 9, 9))) == 0


def far_apart(count: int) -> np.ndarray:
    """Hashes of which any two differ in more than `NEAR_BITS` bits."""
    rng = np.random.default_rng(3)
    found = rng.integers(0, 2**64, count, np.uint64)
    distances = np.bitwise_count(found[:, None] ^ found[None]) + 64 * np.eye(count, dtype=np.uint8)
    assert distances.min() > duplicates.NEAR_BITS
    return found


def test_near_hashes_are_found_whichever_bits_differ() -> None:
    rng = np.random.default_rng(4)
    hashes = list(far_apart(200))
    expected = []
    for bits in range(1, duplicates.NEAR_BITS + 1):
        for _ in range(40):
            of = int(rng.integers(200))
            flipped = sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False))
            expected.append((of, len(hashes), bits))
            hashes.append(hashes[of] ^ np.uint64(flipped))
    found = duplicates.near(np.array(hashes, np.uint64))
    assert set(expected) <= set(found)
    assert [distance for *_, distance in found] == sorted(distance for *_, distance in found)
    for one, other, distance in found:
        assert distance == int(hashes[one] ^ hashes[other]).bit_count() <= duplicates.NEAR_BITS


def test_those_that_differ_in_a_bit_too_many_are_not_near() -> None:
    assert duplicates.near(np.array([0, 2 ** (duplicates.NEAR_BITS + 1) - 1], np.uint64)) == []
    assert duplicates.near(np.array([], np.uint64)) == []


def test_of_many_that_are_equal_each_is_paired_with_the_first() -> None:
    assert duplicates.near(np.array([7, 7, 5, 7], np.uint64)) == [(0, 1, 0), (0, 3, 0), (0, 2, 1)]


def png(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_raw_values_are_counted_whatever_they_mean() -> None:
    grey = np.array([[0, 0, 7], [255, 7, 7]], np.uint8)
    assert raw_values(png(grey), 100, 10) == ({0: 2, 7: 3, 255: 1}, False)
    assert raw_values(png(grey), 100, 2) == ({0: 2, 7: 3}, False)
    assert raw_values(png(grey.astype(np.uint16) * 200), 100, 10) == ({0: 2, 1400: 3, 51000: 1}, False)
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0, 0] = 255, 0, 16
    assert raw_values(png(colours), 100, 10) == ({0: 3, 0xFF0010: 1}, True)
    assert raw_values(png(grey), 100, 10, as_colours=True) == ({0: 2, 0x070707: 3, 0xFFFFFF: 1}, True)
    with pytest.raises(decode.DecodeError, match="not an image"):
        raw_values(b"text", 100, 10)


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
def test_flags_that_would_take_the_values_are_suggested(values: list[int], colours: bool, flags: str | None) -> None:
    counts = dict.fromkeys(values, 9)
    suggested = check.suggest(Labels(counts, counts, colours))
    assert suggested == (flags.split() if flags else None)
    if suggested:  # and they do
        text = suggested[3] if len(suggested) > 2 else ""
        label_map = LabelMap.parse(text, int(suggested[1]))
        assert check.class_pixels(Labels(counts, counts, colours), label_map)[2] == 0


def test_what_was_given_of_the_classes_is_kept_in_what_is_suggested() -> None:
    labels = Labels(dict.fromkeys([0, 1, 2, 254], 9), dict.fromkeys([0, 1, 2, 254], 1), False)
    given: dict[str, Any] = {"classes": "a,b,c", "ignore_label": "254", "split_file": ("train=x", "val=y"), "seed": 5}
    config = dataclasses.replace(CONFIG, **given)
    label_map = LabelMap.parse("", 3, ignore="254")
    flags = check_report.train_flags(found([], {}, labels=labels, label_map=label_map, config=config))
    expected = "--images i --masks m --classes a,b,c --label-map 0:0,1:1,2:2 --ignore-label 254"
    assert flags == [*expected.split(), "--split-file", "train=x", "val=y", "--seed", "5"]
    fitting = LabelMap.parse("0:0,1:1,2:2", 3, ignore="254")
    config = dataclasses.replace(config, label_map="0:0,1:1,2:2")
    kept = check_report.train_flags(found([], {}, labels=labels, label_map=fitting, config=config))
    assert sorted(kept) == sorted(flags)


def test_values_that_no_label_map_reaches_are_of_no_class() -> None:
    values = dict.fromkeys([-70000, -1, 1, 70000], 3)
    assert check.class_pixels(Labels(values, values, False), TRIMAP) == ([3, 0, 0], [3, 0, 0], 9)


def test_classes_are_counted_over_all_masks() -> None:
    rows = [Row("a", values={1: 10, 2: 5, 255: 3}), Row("b", values={1: 2, 9: 1}), Row("c", error="broken")]
    found = check.labels_of([*rows, Row("d", values={0xFF0000: 4}, colours=True)])
    assert found == Labels({1: 12, 2: 5, 255: 3, 9: 1}, {1: 2, 2: 1, 255: 1, 9: 1}, colours=False)
    assert check.class_pixels(found, TRIMAP) == ([12, 5, 0], [2, 1, 0], 1)
    colours = LabelMap.parse("#ff0000:0,#000000:1", 2)
    assert check.class_pixels(found, colours) == ([0, 0], [0, 0], 21)


def test_a_partner_that_is_missing_is_listed(tmp_path: Path) -> None:
    for name in ("i/a.jpg", "i/b.jpg", "m/b.png", "m/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    pairs, photos, masks = manifest.match(str(tmp_path / "i"), str(tmp_path / "m"))
    assert (pairs["id"].to_pylist(), photos["id"].to_pylist(), masks["id"].to_pylist()) == (["b"], ["a"], ["c"])
    assert pairs["mask"].to_pylist() == [str(tmp_path / "m" / "b.png")]


@pytest.fixture
def spoilt(drawn: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The drawn set with one of everything that can be wrong, its masks black and white."""
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    shutil.copytree(drawn[0], photos)
    masks.mkdir()
    for path in drawn[1].iterdir():
        Image.fromarray(((np.asarray(Image.open(path)) == 1) * 255).astype(np.uint8)).save(masks / path.name)
    names = sorted(path.stem for path in photos.iterdir())

    def copy(name: str, of: str) -> None:
        shutil.copy(photos / f"{of}.jpg", photos / f"{name}.jpg")
        shutil.copy(masks / f"{of}.png", masks / f"{name}.png")

    copy("same", names[0])
    copy("smaller", names[1])
    for path, resampling in (
        (photos / "smaller.jpg", Image.Resampling.BILINEAR),
        (masks / "smaller.png", Image.Resampling.NEAREST),
    ):
        picture = Image.open(path)
        picture.resize((picture.width * 4 // 5, picture.height * 4 // 5), resampling).save(path)
    copy("broken", names[2])
    (photos / "broken.jpg").write_bytes(b"broken")
    copy("other_size", names[3])
    Image.new("L", (20, 20)).save(masks / "other_size.png")
    shutil.copy(photos / f"{names[4]}.jpg", photos / "alone.jpg")
    shutil.copy(masks / f"{names[4]}.png", masks / "orphan.png")
    return photos, masks


def test_everything_that_is_wrong_is_found_and_said(
    spoilt: tuple[Path, Path], tmp_path: Path, run_job: RunJob, drawn: tuple[Path, Path]
) -> None:
    flags = ("check", "--images", "photos", "--masks", "masks", "--output", "checked")
    done = run_job("prepare", *flags)
    assert done.returncode == 1
    for said in (
        f"photos without a mask: 1, such as alone; add what is missing in {tmp_path}/masks, or move these away",
        f"masks without a photo: 1, such as orphan; add what is missing in {tmp_path}/photos, or move these away",
        "pass --num-classes 2 --label-map 0:0,255:1",
        "photos that are there twice, byte for byte: 2; ",
        "photos that look like another: 1; ",
    ):
        assert said in done.stdout
    command = f"python {ROOT}/jobs/train.py --images {tmp_path}/photos --masks {tmp_path}/masks"
    command += " --num-classes 2 --label-map 0:0,255:1"
    assert done.stderr == f"stopped: training would refuse this set; once that is mended: {command}\n"

    refused = run_job("prepare", *flags)
    assert refused.returncode == 2 and "pass --overwrite" in refused.stderr and refused.stderr.count("\n") == 1
    settings = ("--num-classes", 2, "--label-map", "0:0,255:1", "--overwrite")
    again = run_job("prepare", *flags, *settings)
    assert again.returncode == 1 and "no class covers" not in again.stdout
    assert "pairs that cannot be used: 2, such as " in again.stdout

    table = pq.read_table(tmp_path / "checked" / "check.parquet")
    assert table.schema.names == check.ROWS.names
    rows = {row["id"]: row for row in table.to_pylist()}
    assert sorted(rows) == [row["id"] for row in table.to_pylist()]
    assert rows["alone"]["error"] == "no mask" and rows["orphan"]["error"] == "no photo"
    assert "not an image that can be read" in rows["broken"]["error"]
    assert "its size 20 × 20 differs from its photo's" in rows["other_size"]["error"]
    good = [row for row in rows.values() if row["error"] is None]
    assert len(good) == len(list(drawn[0].iterdir())) + 2
    for row in good:
        assert {entry["value"] for entry in row["values"]} == {0, 255}
        assert sum(entry["pixels"] for entry in row["values"]) == row["height"] * row["width"]
    assert {row["side"] for row in good} == {"train", "val"}
    first = min(path.stem for path in drawn[0].iterdir())
    assert (rows["same"]["like"], rows[first]["like"]) == (first, None)
    page = (tmp_path / "checked" / "report.html").read_text()
    for said in ("There twice", "other_size", "Photos without a mask", "class_1", "refuses", command):
        assert said in page
    config = json.loads((tmp_path / "checked" / "config.json").read_text())
    assert config["images"] == f"{tmp_path}/photos" and config["num_classes"] == 2


def test_a_mask_of_another_size_is_told_though_all_masks_have_colours(tmp_path: Path, run_job: RunJob) -> None:
    for name, size in {"a": (20, 10), "b": (20, 10), "c": (30, 10)}.items():
        for folder, extent in {"photos": (20, 10), "masks": size}.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", extent, "red").save(tmp_path / folder / f"{name}.png")
    done = run_job("prepare", "check", "--images", "photos", "--masks", "masks", "--output", "checked")
    assert done.returncode == 1
    assert "values that no class covers (they have #ff0000;" in done.stdout
    assert f"pairs that cannot be used: 1, such as {tmp_path}/masks/c.png: its size 30 × 10 differs" in done.stdout
    assert "failed" not in done.stdout


def test_a_set_that_is_fine_is_said_to_be(drawn: tuple[Path, Path], run_job: RunJob, tmp_path: Path) -> None:
    done = run_job("prepare", "check", "--images", drawn[0], "--masks", drawn[1], "--output", "out")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == f"next: python {ROOT}/jobs/train.py --images {drawn[0]} --masks {drawn[1]}"
    assert lines[-2] == f"{len(list(drawn[0].iterdir()))} pairs: {tmp_path}/out/report.html"


def test_what_training_would_take_passes(tmp_path: Path) -> None:
    """Turned photos, and masks in indexed colours whose label map has colours."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    mask = Image.new("P", (40, 30))
    mask.putpalette([255, 0, 0, 0, 0, 255])
    mask.paste(1, (0, 0, 10, 30))
    mask.save(tmp_path / "a.png")
    pairs = pa.table({"id": ["a"], "image": [str(tmp_path / "a.jpg")], "mask": [str(tmp_path / "a.png")]})
    colours = LabelMap.parse("#ff0000:0,#0000ff:1", 2)
    [row] = check.look(pairs, colours, 10_000)
    assert (row.error, row.height, row.width, row.orientation) == (None, 40, 30, 6)
    assert check.class_pixels(check.labels_of([row]), colours) == ([900, 300], [1, 1], 0)


def test_colour_masks_are_one_finding_and_not_a_broken_pair_each() -> None:
    labels = Labels({0: 5, 0xFF0000: 5}, {0: 1, 0xFF0000: 1}, True)
    rows = [Row("a", values=labels.pixels, colours=True, error="it is a colour image"), Row("b", error="broken")]
    said = [str(finding) for finding in check_report.findings(found(rows, {}, labels=labels, pairs=masks("a.png")))]
    assert len(said) == 2
    assert "; pass --num-classes 2 --label-map '#000000:0,#ff0000:1'" in said[0]
    assert said[1].startswith("pairs that cannot be used: 1, such as broken; ")


def test_no_label_map_is_made_up_for_jpeg_masks() -> None:
    counts = dict.fromkeys([0, 1, 2, 254, 255], 5)
    lossy = found([], {}, labels=Labels(counts, counts, False), pairs=masks("a.JPG"))
    [finding] = check_report.findings(lossy)
    assert finding.refused and finding.remedy.endswith("make them again, as PNG")
    assert check_report.train_flags(lossy) == ["--images", "i", "--masks", "m"]


def test_where_no_name_fits_it_is_said_at_once(drawn: tuple[Path, Path], run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for path in drawn[1].iterdir():
        shutil.copy(path, tmp_path / "masks" / f"mask_{path.name}")
    done = run_job("prepare", "check", "--images", drawn[0], "--masks", "masks", "--output", "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    first = min(path.stem for path in drawn[0].iterdir())
    assert f"no mask is called as a photo is (photos such as {first}, masks such as mask_{first})" in done.stderr


def masks(name: str) -> pa.Table:
    return pa.table({"mask": [name]})


CONFIG = CheckConfig(images="i", masks="m", output="o")


def found(rows: list[Row], sides: dict[str, str], **twice: Any) -> check_report.Checked:
    counts = {1: 5, 2: 5, 3: 5}
    whole: dict[str, Any] = {"photos_alone": [], "masks_alone": [], "labels": Labels(counts, counts, False)}
    whole |= {"label_map": TRIMAP, "classes": ("pet", "background", "border"), "same": [], "alike": []}
    whole["pairs"] = masks("a.png")
    whole |= {"config": CONFIG, "rows": rows, "sides": sides}
    return check_report.Checked(**(whole | twice))


def test_what_is_on_both_sides_of_the_split_is_told_apart() -> None:
    rows = [Row(name) for name in "abcde"]
    sides = {"a": "train", "b": "train", "c": "val", "d": "test"}
    twice = found(rows, sides, same=[(0, 1), (0, 2)], alike=[(1, 3, 2), (0, 4, 1)])
    assert twice.across() == [(0, 2), (1, 3)]
    said = [finding.what for finding in check_report.findings(twice)]
    assert said == [
        "photos that are there twice, byte for byte: 2",
        "photos that look like another: 2",
        "of these, on two sides of the split, so that scores would flatter: 2",
    ]
    assert not any(finding.refused for finding in check_report.findings(twice))
    assert twice.like() == {"b": "a", "c": "a", "d": "b", "e": "a"}
    sides = {"a": "val", "b": "train", "c": "val"}
    assert found(rows, sides, same=[(0, 2)], alike=[(1, 2, 1)]).like() == {"c": "b"}  # it leaks; a copy of a does not


def test_a_class_that_no_mask_has_is_told() -> None:
    counts = {1: 5, 2: 5}
    [finding] = check_report.findings(found([], {}, labels=Labels(counts, counts, False)))
    assert str(finding) == "no pixel of border in any mask; see --label-map, --num-classes and --classes"


def test_of_very_many_that_are_near_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 50)
    frames = np.array([1 << bit for bit in range(64)], np.uint64)  # any two differ in two bits
    found = duplicates.near(frames)
    assert 50 <= len(found) < 64 * 63 // 2
    assert {distance for *_, distance in found} == {2}
