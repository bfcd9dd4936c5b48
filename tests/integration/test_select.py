"""`jobs/prepare.py select` from its command line: which photos it chooses, and what it writes of them."""

import csv
import dataclasses
import errno
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import CONFIG, all_classes_network
from conftest import RunJob, assert_refused, run_in
from PIL import Image

from petseg import files
from petseg.data.classes import read_classes
from petseg.data.labels import LabelMap
from petseg.inference.plan import FORMAT
from petseg.jobs.prepare import select
from petseg.models import checkpoint

MODEL = dataclasses.replace(CONFIG, image_size=(32, 48))

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Path, Path]) -> Path:
    """A folder with the photos, a run, and a prediction in three shards. Do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(drawn[0], folder / "photos" / "a b")
    (folder / "photos" / "broken.jpg").write_bytes(b"text")
    history = [{"epoch": 1, "val_loss": 1.0}]
    checkpoint.save(str(folder / "run"), all_classes_network(MODEL), checkpoint.TrainState({}), MODEL, history)
    flags = ("--checkpoint", "run", "--images", "photos", "--output", "predicted", "--shard-size", 10)
    done = run_in(folder, "predict", *flags)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """Copy of it in the test's own folder, in which jobs are called."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "predicted").glob("part-*.parquet"):
        rows = pq.read_table(path)
        images = [image.replace(str(finished), str(tmp_path)) for image in rows["image"].to_pylist()]
        pq.write_table(rows.set_column(1, "image", pa.array(images)), path)
    return tmp_path


def predicted_rows(folder: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(file) for file in sorted((folder / "predicted").glob("part-*.parquet"))]
    return [row for row in pa.concat_tables(tables).to_pylist() if row["error"] is None]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_select_copies_the_most_unsure_photos_with_their_masks(folder: Path, call_job: RunJob) -> None:
    expected = sorted(predicted_rows(folder), key=lambda row: -row["unsure"])[:5]
    assert expected[0]["unsure"] > expected[-1]["unsure"]
    done = call_job("prepare", "select", "--from", "predicted", "--count", 5, "--output", "next")
    assert done.returncode == 0, done.stderr
    assert f"5 photos with their masks: {folder / 'next'}" in done.stdout
    assert "note: 1 photos of the prediction failed; without a mask they are not chosen" in done.stdout
    rows = table(folder / "next" / files.PHOTOS)
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    for row, of_prediction in zip(rows, expected, strict=True):
        assert row["original"] == of_prediction["image"]
        assert (folder / "next" / row["uri"]).read_bytes() == Path(row["original"]).read_bytes()
        of_row = mask(folder / "next" / "masks" / f"{row['id']}.png")
        assert np.array_equal(of_row, np.asarray(Image.open(io.BytesIO(of_prediction["mask_png"]))))
    page = (folder / "next" / files.REPORT).read_text()
    assert all(row["id"] in page for row in rows)
    classes = read_classes(str(folder / "next" / "masks"))
    assert classes is not None and classes.classes == CONFIG.class_names
    checked = call_job(
        "prepare", "check", "--images", "next/photos.csv", "--masks", "next/masks", "--output", "checked"
    )
    assert checked.returncode == 0 and "5 pairs" in checked.stdout


@pytest.mark.parametrize("tool", ["coco", "label-studio", "labelme"])
def test_select_labels_of_a_tool_are_read_back_as_the_same_masks(folder: Path, tool: str, call_job: RunJob) -> None:
    flags = ("--from", "predicted", "--count", 3, "--output", "next", "--tool", tool, "--unlabelled", "background")
    done = call_job("prepare", "select", *flags)
    assert done.returncode == 0, done.stderr
    assert f"masks --from {tool} --images PHOTOS --labels LABELS --unlabelled background " in done.stdout
    labels = {"coco": "annotations.json", "label-studio": "label-studio.json", "labelme": "photos"}[tool]
    if tool == "label-studio":  # a person submits the predictions
        tasks = json.loads((folder / "next" / labels).read_text())
        assert tasks[0]["data"]["image"].startswith("/data/local-files/?d=photos/a%20b/")
        for task in tasks:
            task["annotations"] = task.pop("predictions")
        (folder / "next" / labels).write_text(json.dumps(tasks))
    flags = ("--from", tool, "--images", "next/photos", "--labels", f"next/{labels}", "--unlabelled", "background")
    read = call_job("prepare", "masks", *flags, "--output", "read")
    assert read.returncode == 0, read.stderr
    names = read_classes(str(folder / "read"))
    assert names is not None
    for row in table(folder / "next" / files.PHOTOS):
        before, after = (mask(folder / place / f"{row['id']}.png") for place in ("next/masks", "read"))
        ids = np.array([names.classes.index(name) for name in CONFIG.class_names])
        assert np.array_equal(ids[before], after)


@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_select_leaves_out_labelled_photos(folder: Path, suffix: str, call_job: RunJob) -> None:
    ids = [row["id"] for row in predicted_rows(folder)]
    for row_id in ids[:20]:
        path = folder / "masks" / f"{row_id}{suffix}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"any")
    flags = ("--from", "predicted", "--labelled", "masks", "--output", "next", "--count", 9)
    done = call_job("prepare", "select", *flags)
    assert done.returncode == 0, done.stderr
    assert sorted(row["id"] for row in table(folder / "next" / files.PHOTOS)) == ids[20:]
    assert f"note: --count 9: the prediction has only {len(ids) - 20} photos without a label" in done.stdout


def test_select_class_share_chooses_by_the_pixels_of_classes(folder: Path, call_job: RunJob) -> None:
    rows = predicted_rows(folder)
    shares = np.array([row["class_pixels"] for row in rows], float)
    shares /= shares.sum(1, keepdims=True)
    order = np.argsort(-(shares / shares.mean(0)).mean(1), kind="stable")
    done = call_job("prepare", "select", "--from", "predicted", "--by", "class-share", "--count", 4, "--output", "next")
    assert done.returncode == 0, done.stderr
    chosen = [row["id"] for row in table(folder / "next" / files.PHOTOS)]
    assert chosen == [rows[index]["id"] for index in order[:4]]
    assert chosen != [row["id"] for row in sorted(rows, key=lambda row: -row["unsure"])[:4]]


def test_select_spread_avoids_copies_of_labelled_photos(folder: Path, call_job: RunJob) -> None:
    """All photos but one are a copy of a labelled photo. The other one is the farthest."""
    rows = sorted(predicted_rows(folder), key=lambda row: -row["unsure"])
    labelled, other = rows[0], rows[-1]
    for row in rows[1:-1]:
        shutil.copy(labelled["image"], row["image"])
    (folder / "labelled.csv").write_text(f"id,uri\n{labelled['id']},anywhere.png\n")
    flags = ("--from", "predicted", "--by", "spread", "--count", 3, "--labelled", "labelled.csv")
    done = call_job("prepare", "select", *flags, "--output", "next")
    assert done.returncode == 0, done.stderr
    assert other["id"] in [row["id"] for row in table(folder / "next" / files.PHOTOS)]


def test_select_replaced_photo_is_left_out_with_a_note(folder: Path, call_job: RunJob) -> None:
    replaced = max(predicted_rows(folder), key=lambda row: row["unsure"])["image"]
    Image.new("RGB", (7, 5)).save(replaced)
    done = call_job("prepare", "select", "--from", "predicted", "--count", 3, "--output", "next")
    assert f"note: {replaced} is left out: it has another size than its mask" in done.stdout
    assert len(table(folder / "next" / files.PHOTOS)) == 2


def test_select_classes_whose_names_are_numbers_keep_their_ids(folder: Path, call_job: RunJob) -> None:
    plan = folder / "predicted" / files.PLAN
    plan.write_text(plan.read_text().replace('"pet"', '"1"').replace('"background"', '"2"').replace('"border"', '"0"'))
    assert call_job("prepare", "select", "--from", "predicted", "--count", 3, "--output", "next").returncode == 0
    described = read_classes(str(folder / "next" / "masks"))
    assert described is not None and described.classes == ("1", "2", "0")
    label_map = LabelMap.parse(described.label_map, 3, described.classes, described.ignore_label)
    assert label_map.ids == {0: 0, 1: 1, 2: 2, 255: 255}


def test_select_photo_that_is_gone_is_left_out_with_a_note(folder: Path, call_job: RunJob) -> None:
    gone = max(predicted_rows(folder), key=lambda row: row["unsure"])["image"]
    Path(gone).unlink()
    done = call_job("prepare", "select", "--from", "predicted", "--count", 3, "--output", "next")
    assert done.returncode == 0, done.stderr
    assert f"note: {gone} is left out: " in done.stdout
    assert len(table(folder / "next" / files.PHOTOS)) == 2


def test_select_copies_no_file_that_is_no_image(folder: Path, call_job: RunJob) -> None:
    """A shard in a shared bucket may name any file."""
    for path in (folder / "predicted").glob("part-*.parquet"):
        rows = pq.read_table(path)
        secret = pa.array([str(folder / "secret")] * rows.num_rows)
        pq.write_table(rows.set_column(rows.column_names.index("image"), "image", secret), path)
    (folder / "secret").write_text("key")
    done = call_job("prepare", "select", "--from", "predicted", "--count", 3, "--output", "next")
    assert_refused(done, "none of the chosen photos can be used any more")
    assert not (folder / "next").exists()


def test_select_that_fails_at_the_end_leaves_nothing(
    folder: Path, call_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert (folder / "next" / "annotations.json").is_file() and (folder / "next" / files.REPORT).is_file()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(select, "_write_table", fail)
    flags = ("--from", "predicted", "--count", 2, "--tool", "coco", "--output", "next")
    done = call_job("prepare", "select", *flags)
    assert done.returncode == 1 and "cannot be written: No space left on device; fix this and run" in done.stderr
    assert not (folder / "next").exists()


def test_select_invalid_input_is_refused(folder: Path, call_job: RunJob) -> None:
    flags = ("--from", "predicted", "--output", "next")
    refused = call_job("prepare", "select", *flags, "--tool", "coco", "--unlabelled", "sky")
    assert_refused(refused, "--unlabelled sky: no such class; give one of pet, background, border")
    assert_refused(call_job("prepare", "select", *flags, "--unlabelled", "pet"), "--unlabelled needs --tool")
    assert_refused(call_job("prepare", "select", "--from", "photos", "--output", "next"), "no prediction (it has no")
    assert_refused(call_job("prepare", "select", *flags[:2], "--output", "run"), "it is not empty")
    refused = call_job("prepare", "select", *flags, "--by", "spread", "--checkpoint", "photos")
    assert_refused(refused, f"--checkpoint {folder / 'photos'}: neither a run's folder nor a complete checkpoint")
    (folder / "labelled.csv").write_text("id,uri\nelsewhere,elsewhere.png\n")
    refused = call_job("prepare", "select", *flags, "--labelled", "labelled.csv")
    assert_refused(refused, "no mask in it has the name of a photo of --from")
    plan = folder / "predicted" / files.PLAN
    now, before = f'"format": {FORMAT}', f'"format": {FORMAT - 1}'
    plan.write_text(plan.read_text().replace(now, before))
    assert_refused(call_job("prepare", "select", *flags), "written by another version of petseg; predict again")
    plan.write_text(plan.read_text().replace(before, now))
    path = folder / "predicted" / "part-00000-of-00003.parquet"
    rows = pq.read_table(path)
    ids = pa.array(["../../outside", *rows["id"].to_pylist()[1:]])
    pq.write_table(rows.set_column(0, "id", ids), path)
    assert_refused(call_job("prepare", "select", *flags), "'../../outside' is not an id; was it edited?")
    (folder / "predicted" / files.SUCCESS).unlink()
    assert_refused(call_job("prepare", "select", *flags), "the prediction is not finished; give its command again")
    assert not (folder / "next").exists()
