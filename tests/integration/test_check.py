"""`jobs/prepare.py check`: the problems it finds and reports, and that a valid set passes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, RunJob, assert_refused
from PIL import Image

from petseg.data import check


@pytest.fixture
def spoilt(drawn: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The generated set with black and white masks and one of each kind of problem."""
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    shutil.copytree(drawn[0], photos)
    masks.mkdir()
    for path in drawn[1].glob("*.png"):
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


def test_check_job_set_with_all_problems_reports_each(
    spoilt: tuple[Path, Path], tmp_path: Path, run_job: RunJob, call_job: RunJob, drawn: tuple[Path, Path]
) -> None:
    flags = ("check", "--images", "photos", "--masks", "masks", "--output", "checked")
    (tmp_path / "photos" / "raw.dng").touch()
    done = run_job("prepare", *flags)
    assert done.returncode == 1
    for said in (
        f"1 photo without a mask, such as alone; add the missing masks to {tmp_path}/masks, or move these photos away",
        f"1 mask without a photo, such as orphan; add the missing photos to {tmp_path}/photos, or move these masks ",
        "pass --num-classes 2 --label-map 0:0,255:1",
        "2 exact duplicates; ",
        "1 near-duplicate; ",
        "--images: skipped 1 .dng; convert or rename those that are images",
    ):
        assert said in done.stdout
    command = f"python {ROOT}/jobs/train.py --images {tmp_path}/photos --masks {tmp_path}/masks"
    command += " --num-classes 2 --label-map 0:0,255:1"
    assert done.stderr == f"stopped: training would reject this dataset; fix the problems above, then run: {command}\n"

    assert_refused(call_job("prepare", *flags), "pass --overwrite")
    settings = ("--num-classes", 2, "--label-map", "0:0,255:1", "--overwrite")
    again = call_job("prepare", *flags, *settings)
    assert again.returncode == 1 and "no class covers" not in again.stdout
    assert "2 pairs cannot be used, such as " in again.stdout

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
    assert {row["split"] for row in good} == {"train", "val"}
    first = min(path.stem for path in drawn[0].iterdir())
    assert (rows["same"]["like"], rows[first]["like"]) == (first, None)
    page = (tmp_path / "checked" / "report.html").read_text()
    for said in ("Duplicates", "other_size", "Photos without a mask", "class_1", "refuses", command):
        assert said in page
    config = json.loads((tmp_path / "checked" / "config.json").read_text())
    assert config["images"] == f"{tmp_path}/photos" and config["num_classes"] == 2


def test_check_job_colour_masks_other_size_is_reported(tmp_path: Path, call_job: RunJob) -> None:
    for name, size in {"a": (20, 10), "b": (20, 10), "c": (30, 10)}.items():
        for folder, extent in {"photos": (20, 10), "masks": size}.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", extent, "red").save(tmp_path / folder / f"{name}.png")
    done = call_job("prepare", "check", "--images", "photos", "--masks", "masks", "--output", "checked")
    assert done.returncode == 1
    assert "values that no class covers (values #ff0000;" in done.stdout
    assert f"1 pair cannot be used, such as {tmp_path}/masks/c.png: its size 30 × 10 differs" in done.stdout
    assert "failed" not in done.stdout


def test_check_job_valid_set_passes(drawn: tuple[Path, Path], call_job: RunJob, tmp_path: Path) -> None:
    done = call_job("prepare", "check", "--images", drawn[0], "--masks", drawn[1], "--output", "out")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == f"next: python {ROOT}/jobs/train.py --images {drawn[0]} --masks {drawn[1]}"
    assert lines[-2] == f"{len(list(drawn[0].iterdir()))} pairs: {tmp_path}/out/report.html"


def test_check_job_no_matching_names_is_refused(drawn: tuple[Path, Path], call_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for path in drawn[1].glob("*.png"):
        shutil.copy(path, tmp_path / "masks" / f"mask_{path.name}")
    done = call_job("prepare", "check", "--images", drawn[0], "--masks", "masks", "--output", "out")
    first = min(path.stem for path in drawn[0].iterdir())
    assert_refused(done, f"no photo and mask have the same name (photos such as {first}, masks such as mask_{first})")
