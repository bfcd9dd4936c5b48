"""The train and predict jobs as a user runs them: command lines, exit codes, printed lines and written files."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import PAIRS, ROOT, RunJob, assert_refused, run_in
from PIL import Image
from prometheus import scrape
from pycocotools import mask as cocotools

from petseg import files
from petseg.cluster import metrics
from petseg.config import base
from petseg.config.train import TrainConfig
from petseg.inference.plan import Outputs, schema
from petseg.models import checkpoint
from petseg.status import read_status

EPOCHS = 4
SMALL = ("--image-size", 64, 64, "--val-count", 7)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage folder with the run "first" and its printed lines in the file `printed`.

    The run is the README's first command, made smaller and shorter. It generates its photos and starts its own Ray.
    """
    folder = tmp_path_factory.mktemp("storage")
    flags = ("--epochs", EPOCHS, "--image-size", 64, 64, "--cpus-per-worker", 1)  # threads would wait on busy cores
    done = run_in(folder, "train", "--storage", folder, "--name", "first", *flags, timeout_s=600)
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


@pytest.mark.ray
def test_train_first_command_learns_and_prints_the_next(storage: Path, run_job: RunJob) -> None:
    lines = (storage / "printed").read_text().splitlines()
    epochs = [line.split()[:2] for line in lines if line.startswith("epoch")]
    assert epochs == [["epoch", f"{number}/{EPOCHS}"] for number in range(1, EPOCHS + 1)]
    assert "ETA 0:00" in lines[-4] and lines[-2].startswith("best: epoch ")
    assert lines[-3] == f"report: {storage / 'first' / 'report.html'}"
    constant = 0.75 / 3  # if only background is predicted, three quarters of the pixels
    assert float(lines[-2].rsplit(" ", 1)[1]) > constant + 0.1
    command = shlex.split(lines[-1].removeprefix("next: "))
    assert command[:2] == ["python", str(ROOT / "jobs" / "predict.py")]
    predicted = run_job("predict", *command[2:])
    assert predicted.returncode == 0, predicted.stderr
    photos = {path.stem for path in (storage / "petseg-demo" / "images").iterdir()}
    assert {path.stem for path in (storage / "first" / "predictions" / "masks").iterdir()} == photos
    shutil.rmtree(storage / "first" / "predictions")


@pytest.mark.ray
def test_train_run_folder_has_all_files(storage: Path) -> None:
    run = storage / "first"
    names = {"checkpoints", "config.json", "manifest.parquet", "metrics.jsonl", "report.html", "tensorboard"}
    assert {path.name for path in run.iterdir()} == names | {files.STATUS}
    status = read_status(str(run))
    assert (status.job, status.phase, status.exit_code, status.epoch, status.epochs) == (
        "train",
        "finished",
        0,
        EPOCHS,
        EPOCHS,
    )
    assert status.total and status.done == status.total and status.val_miou is not None
    resolved = base.from_json(TrainConfig, (run / "config.json").read_text(), "config.json")
    assert (resolved.images, resolved.epochs, resolved.num_workers) == (None, EPOCHS, (1,))
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, EPOCHS + 1))
    for epoch in epochs:
        assert set(epoch) == {
            "epoch",
            "train_loss",
            "val_loss",
            "val_pixel_accuracy",
            "val_miou",
            "val_iou",
            "train_images_per_s",
            "seconds",
        }
        assert set(epoch["val_iou"]) == {"pet", "background", "border"}
        assert all(value > 0 for key, value in epoch.items() if key != "val_iou")
    split = pq.read_table(run / "manifest.parquet")["split"].to_pylist()
    assert (split.count("train"), split.count("val")) == (192, 48)
    kept = {path.name for path in (run / "checkpoints").iterdir()}  # the best and the last
    assert f"epoch-{EPOCHS:04}" in kept and len(kept) <= 2
    for name in kept:
        names = {path.name for path in (run / "checkpoints" / name).iterdir()}
        assert names == {"config.json", "metrics.json", "model.pt", "train_state.pt"}
    assert checkpoint.find(str(run)).model.image_size == (64, 64)


@pytest.mark.ray
def test_train_existing_name_is_refused_without_resume(storage: Path, tmp_path: Path, call_job: RunJob) -> None:
    shutil.copytree(storage, tmp_path / "runs")
    assert_refused(call_job("train", "--name", "first"), "error: --name first: ")

    assert_refused(call_job("train", "--resume", "auto"), "error: --resume needs --name")

    for resume in (["--resume"], ["--resume", "auto", "--epochs", EPOCHS, "--image-size", 64, 64]):
        finished = call_job("train", "--name", "first", *resume)
        assert (finished.returncode, finished.stderr) == (0, "")
        run = tmp_path / "runs" / "first"
        assert finished.stdout == f"{run} already has {EPOCHS} epochs; to train more, raise --epochs\n"

    longer = call_job("train", "--name", "first", "--resume", "auto", "--epochs", EPOCHS + 1, "--cpus-per-worker", 1)
    assert longer.returncode == 0, longer.stderr
    # 24 steps per epoch, and 12 of 120 to warm up: 0.5 * (1 + cos(pi * (96 - 12) / (120 - 12)))
    assert "the learning rate continues on the schedule of 5 epochs, at 0.12 instead of 0 of" in longer.stdout
    before = (storage / "first" / "metrics.jsonl").read_text()
    after = (tmp_path / "runs" / "first" / "metrics.jsonl").read_text()
    assert after.startswith(before) and after.count("\n") == EPOCHS + 1
    assert "epoch 5/5" in longer.stdout and "epoch 4/5" not in longer.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_train_resume_finished_run_writes_the_missing_report(storage: Path, tmp_path: Path, run_job: RunJob) -> None:
    shutil.copytree(storage, tmp_path / "runs")
    report = tmp_path / "runs" / "first" / "report.html"
    report.unlink()
    done = run_job("train", "--name", "first", "--resume")
    assert done.returncode == 0, done.stderr
    assert "Worst predictions" in report.read_text()
    metrics = [folder / "first" / "metrics.jsonl" for folder in (storage, tmp_path / "runs")]
    assert metrics[0].read_text() == metrics[1].read_text()


@pytest.mark.ray
def test_predict_broken_and_valid_photos_each_has_a_row(
    storage: Path, drawn: tuple[Path, Path], tmp_path: Path, run_job: RunJob, call_job: RunJob
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(drawn[0], photos / "some")
    (photos / "broken.jpg").write_bytes(b"text")
    Image.new("CMYK", (3000, 2000)).save(photos / "cmyk.tif")
    for name in ("a.mov", "some/b.mov", "notes.txt", ".hidden.jpg"):
        (photos / name).touch()
    flags = ("--checkpoint", storage / "first", "--images", "photos", "--output", "out")
    settings = ("--shard-size", 10, "--num-workers", 2, "--batch-size", 4)
    stopped = run_job("predict", *flags, *settings, "--max-errors", 0)
    assert stopped.returncode == 1
    assert f" more than --max-errors 0 allows ({PAIRS + 2} photos in all); broken: not an image" in stopped.stderr
    again = call_job("predict", *flags, *settings, "--max-errors", 0)
    assert again.returncode == 1 and again.stderr.startswith("stopped: 1 of ")
    status = read_status(f"{tmp_path}/out")
    assert (status.phase, status.exit_code, status.failed) == ("stopped", 1, 1)
    assert status.reason == stopped.stderr.removeprefix("stopped: ").rstrip()  # the second had nothing to do
    assert not (tmp_path / "out" / files.SUCCESS).exists()
    written = sorted((tmp_path / "out").glob("part-*"))
    kept = {file: file.read_bytes() for file in written[:1]}
    for file in written[1:]:  # shards in progress when it stopped
        file.unlink()

    done = call_job("predict", *flags, *settings, "--max-errors", 0.1)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    at_first = sum(pq.read_metadata(file).num_rows for file in kept)
    assert lines[0].startswith(f"{at_first}/{PAIRS + 2} images  {100 * at_first // (PAIRS + 2)}%")
    assert lines[-5].startswith(f"{PAIRS + 2}/{PAIRS + 2} images  100%  ") and lines[-5].endswith(
        "1 failed  ETA 0:00:00"
    )
    assert lines[-3].endswith(f"{PAIRS + 2} rows, 1 failed: {tmp_path}/out")
    assert lines[-2] == "  --images: skipped 2 .mov, 1 .txt, 1 hidden"
    assert lines[-1].startswith("  failed: broken: not an image that can be read")
    success = json.loads((tmp_path / "out" / files.SUCCESS).read_text())
    assert success["skipped"] == {".mov": 2, ".txt": 1, "hidden": 1}

    shards = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [file.name for file in shards] == [f"part-0000{i}-of-00003.parquet" for i in range(3)]
    assert all(file.read_bytes() == content for file, content in kept.items())
    rows = [row for file in shards for row in pq.read_table(file).to_pylist()]
    ids = ["broken", "cmyk", *(f"some/{path.stem}" for path in sorted(drawn[0].iterdir()))]
    assert [row["id"] for row in rows] == ids
    for row in rows[1:]:
        with Image.open(row["image"]) as photo, Image.open(tmp_path / "out" / "masks" / f"{row['id']}.png") as mask:
            assert mask.mode == "P" and mask.size == photo.size == (row["width"], row["height"])
            values = np.asarray(mask)
        assert np.array_equal(values, np.asarray(Image.open(io.BytesIO(row["mask_png"]))))
        assert np.bincount(values.ravel(), minlength=3).tolist() == row["class_pixels"]
        assert 1 / 3 <= row["confidence"] <= 1 and 0 <= row["unsure"] <= 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        files.SUCCESS,
        files.PREDICTION_MANIFEST,
        files.PLAN,
        "config.json",
        "masks",
        *(file.name for file in shards),
        "report.html",
        "status.json",
    ]
    status = read_status(f"{tmp_path}/out")
    assert (status.phase, status.done, status.failed, status.total) == ("finished", PAIRS + 2, 1, PAIRS + 2)
    assert status.done_before == at_first

    (tmp_path / "out" / files.SUCCESS).unlink()
    last_step = call_job("predict", *flags, *settings)
    assert last_step.returncode == 0, last_step.stderr
    assert f"\nall shards were already written; {PAIRS + 2} rows, 1 failed" in last_step.stdout
    status = read_status(f"{tmp_path}/out")
    assert (status.phase, status.done, status.failed, status.total) == ("finished", PAIRS + 2, 1, PAIRS + 2)
    before = (tmp_path / "out" / files.STATUS).read_bytes()
    nothing = call_job("predict", *flags, *settings, "--log-format", "json")
    assert nothing.returncode == 0
    log = [json.loads(line) for line in nothing.stdout.splitlines()]
    assert log[0]["message"].startswith("already finished; nothing to do")
    assert (log[-1]["event"], log[-1]["done"], log[-1]["failed"]) == ("end", PAIRS + 2, 1)
    other = call_job("predict", *flags, *settings, "--no-png")
    assert_refused(other, "png (was True, now False)", "--overwrite")
    assert (tmp_path / "out" / files.STATUS).read_bytes() == before

    shutil.copy(photos / "cmyk.tif", photos / "broken.jpg")
    shutil.copy(photos / "cmyk.tif", photos / "new.tif")
    (photos / "some" / "pet_0000.jpg").unlink()
    grown = call_job("predict", *flags, *settings)
    assert_refused(grown, f"1 new: {photos}/new.tif, 1 gone: {photos}/some/pet_0000.jpg; pass --append", "--overwrite")
    grown = call_job("predict", *flags, *settings, "--append", "--retry-errors")
    assert grown.returncode == 0, grown.stderr
    lines = grown.stdout.splitlines()
    assert lines[0] == "new photos: 1; changed or failed: 1; gone (rows kept): 1"
    assert lines[1].startswith(f"{PAIRS + 1}/{PAIRS + 3} images  ") and "  1 failed" in lines[1]
    assert any(line.startswith(f"{PAIRS + 3}/{PAIRS + 3} images  100%") and "  0 failed" in line for line in lines)
    shards = sorted((tmp_path / "out").glob("part-*.parquet"))
    after = [row for file in shards for row in pq.read_table(file).to_pylist()]
    assert after[1:-1] == rows[1:] and [row["id"] for row in after] == [*ids, "new"]
    assert after[0]["mask_png"] == after[1]["mask_png"] == after[-1]["mask_png"]


@pytest.mark.ray
def test_predict_all_outputs_are_readable_by_other_tools(
    storage: Path, drawn: tuple[Path, Path], tmp_path: Path, run_job: RunJob, call_job: RunJob
) -> None:
    """Writes tiles, overlays, probabilities and COCO masks over another job's output and reads them without Ray.

    Also checks that the job joins the Ray in RAY_ADDRESS.
    """
    import ray

    jobs_before = len(ray._private.state.jobs())  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
    flags = ("--checkpoint", storage / "first", "--images", drawn[0], "--output", "out")
    (tmp_path / "out").mkdir()
    before = {"png": False, "manifest_sha256": "", "shard_size": 256}
    (tmp_path / "out" / files.PLAN).write_text(json.dumps(before))
    extras = ("--limit", 5, "--tile", 96, 128, "--tile-overlap", 16, "--overlay", "--probabilities", "--coco-rle")
    assert_refused(call_job("predict", *flags, *extras))
    done = run_job("predict", *flags, *extras, "--overwrite")
    assert done.returncode == 0, done.stderr
    jobs = ray._private.state.jobs()  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
    assert len(jobs) == jobs_before + 1
    tags = {"command": "predict", "output": f"{tmp_path}/out"}
    assert scrape(metrics.PREFIX + metrics.PHOTOS, tags) == 5
    assert [scrape(metrics.PREFIX + name, tags) for name in (metrics.RATE, metrics.WAITING)] == [0, 0]

    parts = str(tmp_path / "out" / "part-*.parquet")
    names = [f"pet_{i * PAIRS // 5:04}" for i in range(5)]
    columns = [*schema(Outputs()).names, "probability_pngs", "coco_rle"]
    with duckdb.connect() as database:
        found = database.sql(f"select * from '{parts}' order by id")  # noqa: S608 - a path of this test's own
        assert found.columns == columns
        assert [row[0] for row in found.fetchall()] == names
        areas = database.sql(f"select sum(list_sum(class_pixels)) = sum(height * width) from '{parts}'")  # noqa: S608
        assert areas.fetchall() == [(True,)]
    frame = pd.read_parquet(tmp_path / "out" / "part-00000-of-00001.parquet")
    assert list(frame.columns) == columns and list(frame["id"]) == names and frame["error"].isna().to_numpy().all()
    for row in frame.to_dict("records"):
        size = (row["height"], row["width"])
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{row['id']}.png"))
        probabilities = np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in row["probability_pngs"]])
        assert mask.shape == size and probabilities.shape == (3, *size)
        assert np.abs(probabilities.sum(0, dtype=int) - 255).max() <= 2
        assert (np.take_along_axis(probabilities, mask[None], 0)[0] == probabilities.max(0)).all()
        for class_id, rle in enumerate(row["coco_rle"]):
            compressed: Any = {"size": list(rle["size"]), "counts": rle["counts"]}
            assert cocotools.area(compressed) == (mask == class_id).sum()
        with Image.open(tmp_path / "out" / "overlays" / f"{row['id']}.jpg") as overlay:
            assert overlay.size == size[::-1]

    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "predicting.md").read_text(), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example.replace("/data/masks", str(tmp_path / "out")), {})  # noqa: S102 - our own page


DEADLY_DECODER = """
import os, re, signal
from PIL import Image, ImageFile

decode = Image.open

def deadly(file, *given, **named):
    if file.getvalue() == b"deadly":
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode(file, *given, **named)

def deadly_load(image):
    if image.size == (999, 50):
        os.kill(os.getpid(), signal.SIGSEGV)
    if image.size == (99, 50):
        re.match("(a+)+$", "a" * 60 + "b")  # hangs, and no other thread of Python runs
    return load(image)

load = ImageFile.ImageFile.load
ImageFile.ImageFile.load = deadly_load
Image.open = deadly
"""


@pytest.mark.ray
@pytest.mark.own_ray
def test_predict_photo_that_kills_its_worker_is_an_error_row(
    storage: Path, drawn: tuple[Path, Path], tmp_path: Path, run_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder crashes on some photos, as C code may on a malicious file: on two photos at once, and on a tiled
    photo when its pixels are decoded. It hangs on one in another shard."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY_DECODER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    (tmp_path / "photos").mkdir()
    originals = sorted(drawn[0].iterdir())[:8]
    for path in originals:
        shutil.copy(path, tmp_path / "photos")
    for name in ("pet_0003", "pet_0004"):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(b"deadly")
    Image.new("RGB", (999, 50)).save(tmp_path / "photos" / "pet_0005.jpg")
    Image.new("RGB", (99, 50)).save(tmp_path / "photos" / originals[-1].name, "PNG")
    flags = ("--images", "photos", "--output", "out", "--shard-size", 6, "--tile", 300, "--decode-timeout", 2)
    done = run_job("predict", "--checkpoint", storage / "first", *flags)
    assert done.returncode == 0, done.stderr
    assert f"{len(originals)} rows, 4 failed" in done.stdout
    assert f"  failed: {originals[-1].stem}: decoding it took longer than --decode-timeout 2 s" in done.stdout
    for name in ("pet_0003", "pet_0004", "pet_0005"):
        assert f"  failed: {name}: decoding it crashed, or ran out of memory" in done.stdout
    assert len(list((tmp_path / "out" / "masks").iterdir())) == len(originals) - 4


@pytest.mark.ray
def test_predict_single_photo_is_taken(
    storage: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    flags = ("--images", drawn[0] / "pet_0003.jpg", "--output", "out")
    done = call_job("predict", "--checkpoint", storage / "first", *flags)
    assert done.returncode == 0, done.stderr
    assert "; 1 rows, 0 failed" in done.stdout
    assert [path.name for path in (tmp_path / "out" / "masks").iterdir()] == ["pet_0003.png"]


@pytest.mark.ray
def test_predict_table_gives_ids_and_order(
    storage: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    first, second = sorted(drawn[0].iterdir())[:2]
    (tmp_path / "photos.csv").write_text(f"id,uri,why\nlast/z,{second},x\ngone,missing.jpg,y\na,{first},z\n")
    done = call_job("predict", "--checkpoint", storage / "first", "--images", "photos.csv", "--output", "out")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "part-00000-of-00001.parquet").to_pylist()
    assert [(row["id"], row["image"]) for row in rows] == [
        ("last/z", str(second)),
        ("gone", str(tmp_path / "missing.jpg")),
        ("a", str(first)),
    ]
    assert [row["error"] is None for row in rows] == [True, False, True] and "No such file" in rows[1]["error"]
    assert {path.stem for path in (tmp_path / "out" / "masks").rglob("*.png")} == {"z", "a"}


@pytest.mark.ray
def test_train_table_of_an_earlier_run_trains_on_its_pairs(storage: Path, tmp_path: Path, call_job: RunJob) -> None:
    table = storage / "first" / "manifest.parquet"
    chosen = pq.read_table(table).slice(100, 12)
    pq.write_table(chosen, tmp_path / "pairs.parquet")
    shutil.copy(storage / "petseg-demo" / "trimaps" / "classes.json", tmp_path)
    pairs = ("--images", "pairs.parquet", "--masks", "pairs.parquet", "--val-count", 4, "--epochs", 1)
    done = call_job("train", *pairs, "--image-size", 64, 64, "--name", "again", "--batch-size", 4)
    assert done.returncode == 0, done.stderr
    assert "training on 8 pairs, validating on 4" in done.stdout
    found = pq.read_table(tmp_path / "runs" / "again" / "manifest.parquet")
    assert sorted(found["id"].to_pylist()) == sorted(chosen["id"].to_pylist())
    assert checkpoint.find(str(tmp_path / "runs" / "again")).model.class_names == ("pet", "background", "border")


@pytest.mark.ray
@pytest.mark.own_ray
def test_predict_files_in_the_working_folder_and_a_long_tmpdir_do_no_harm(
    storage: Path, drawn: tuple[Path, Path], tmp_path: Path, run_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "petseg").mkdir()
    (tmp_path / "petseg" / "__init__.py").write_text("raise ImportError('not the installed petseg')")
    (tmp_path / "numpy.py").write_text("import sys; sys.exit('a script of mine')")
    long_folder = tmp_path / ("x" * 80)
    long_folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long_folder))
    # Where the short folder is made. Longer names are of training jobs, which other tests run meanwhile.
    before = set(Path("/tmp").glob("petseg-????????"))  # noqa: S108
    done = run_job("predict", "--checkpoint", storage / "first", "--images", drawn[0], "--output", "out")
    assert done.returncode == 0, done.stderr
    assert f"{PAIRS} rows, 0 failed" in done.stdout
    assert {path for path in Path("/tmp").glob("petseg-????????") if path.is_dir()} <= before  # noqa: S108


SLOW_WRITER = """
import sys, time
from petseg.jobs import predict

log = sys.argv.pop(1)
read, write = predict._read, predict._write

def note(what):
    with open(log, "a") as file:
        file.write(what)

def noted_read(numbers, **settings):
    note("r")
    return read(numbers, **settings)

def slow_write(predicted, **settings):
    time.sleep(0.5)
    note("w")
    return write(predicted, **settings)

predict._read, predict._write = noted_read, slow_write
predict.run()
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.own_ray
def test_predict_slow_writer_holds_back_reading(storage: Path, tmp_path: Path) -> None:
    """Each shard takes a megabyte, mostly previews for the overlays. Together they are far above the memory budget."""
    num_shards = 40
    (tmp_path / "photos").mkdir()
    Image.effect_noise((500, 500), 90).convert("RGB").save(tmp_path / "photos" / "noise.jpg", quality=95)
    for number in range(4 * num_shards - 1):
        (tmp_path / "photos" / f"{number}.jpg").symlink_to("noise.jpg")
    (tmp_path / "slow.py").write_text(SLOW_WRITER)
    command = [sys.executable, "slow.py", "log", "--images", "photos"]
    command += ["--output", "out", "--checkpoint", str(storage / "first"), "--shard-size", "4", "--overlay"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log").read_text()
    assert log.count("r") == log.count("w") == num_shards
    ahead = np.cumsum([1 if what == "r" else -1 for what in log])
    assert ahead.max() < num_shards / 2


@pytest.mark.ray
def test_train_ray_address_without_answer_is_refused(
    drawn: tuple[Path, Path], call_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    done = call_job("train", "--images", drawn[0], "--masks", drawn[1], *SMALL)
    assert_refused(done, "error: no Ray answers at 127.0.0.1:9; ")


@pytest.mark.ray
def test_train_masks_with_unknown_values_are_refused(
    drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    shutil.copytree(drawn[1], tmp_path / "masks")
    for value, name in ((0, "pet_0003"), (9, "pet_0005")):
        mask = np.array(Image.open(tmp_path / "masks" / f"{name}.png"))
        mask[0, 0] = value
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    done = call_job("train", "--images", drawn[0], "--masks", "masks", "--name", "new", *SMALL)
    from_0 = "pet_0003.png: it has the value 0, but the classes cover 1, 2, 3; if your masks count from 0"
    assert_refused(done, "error: 2 pairs cannot be used: ", from_0, "pet_0005.png: it has the value 9,")
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def folder(tmp_path: Path, drawn: tuple[Path, Path]) -> Path:
    """Folder with the subfolders photos, masks, one-photo and none (empty), and the file `file`."""
    shutil.copytree(drawn[0], tmp_path / "photos")
    shutil.copytree(drawn[1], tmp_path / "masks")
    (tmp_path / "none").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "one-photo").mkdir()
    shutil.copy(drawn[0] / "pet_0000.jpg", tmp_path / "one-photo")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--images nowhere --masks masks", "nowhere: no such folder"),
        ("--images none --masks masks", "--images {}/none: no images found"),
        ("--images photos --masks none", "--masks {}/none: no images found"),
        ("--images one-photo --masks masks", "masks without a photo: pet_0001, pet_0002"),
        ("--images photos", "--images and --masks belong together"),
        ("--images photos --masks masks --val-count 20", "do not fill one batch of 8"),
        ("--images photos --masks masks --storage file", "--storage {}/file/new: {}/file is not a folder"),
        ("--images photos --masks masks --label-map 1", "--label-map: '1' is not"),
        ("--resume", "there is no run in {}/runs/new"),
    ],
)
def test_train_invalid_input_is_refused_in_one_line(flags: str, message: str, folder: Path, call_job: RunJob) -> None:
    before = sorted(folder.rglob("*"))
    done = call_job("train", *flags.split(), "--name", "new")
    assert_refused(done, message.replace("{}", str(folder)))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.ray
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--images nowhere --output out", "nowhere: no such folder"),
        ("--images none --output out", "--images {}/none: no images found"),
        ("--images photos --output file", "--output {}/file: {}/file is not a folder"),
        ("--images photos --output photos/masks", "--output {}/photos/masks: it is inside --images"),
        ("--images photos --output out --checkpoint masks", "--checkpoint {}/masks: neither a run's folder nor"),
        ("--images masks --output .", "--images {}/masks: it is in a folder where --output {} writes pictures"),
        ("--images photos --output out --shard-size 0", "--shard-size 0: give at least 1"),
        ("--images photos --output out --max-errors 1.5", "--max-errors 1.5: give a whole number, or a fraction"),
        ("--images photos --output out --tile 8", "--tile 8: give one number or two"),
        ("--images photos --output out --tile-overlap 8", "--tile-overlap needs --tile"),
        ("--images photos --output out --checkpoint RESHAPED", r"head.bias is (7,) in model.pt, but (3,) in"),
    ],
)
def test_predict_invalid_input_is_refused_in_one_line(
    flags: str, message: str, folder: Path, storage: Path, call_job: RunJob
) -> None:
    import torch

    reshaped = folder / "reshaped"
    shutil.copytree(storage / "first" / "checkpoints" / f"epoch-{EPOCHS:04}", reshaped)
    state = torch.load(reshaped / "model.pt", weights_only=True)
    torch.save(state | {"head.bias": torch.zeros(7)}, reshaped / "model.pt")
    before = sorted(folder.rglob("*"))
    given = flags.replace("RESHAPED", str(reshaped)).split()
    if "--checkpoint" not in given:
        given += ["--checkpoint", str(storage / "first")]
    assert_refused(call_job("predict", *given), message.replace("{}", str(folder)))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("job", ["train", "predict"])
def test_job_unknown_flag_exits_with_code_2(job: str, run_job: RunJob) -> None:
    assert_refused(run_job(job, "--epochz", 3), "--epochz")


@pytest.mark.ray
def test_predict_published_photos_each_has_a_mask_of_its_size(
    pets: Path, storage: Path, tmp_path: Path, call_job: RunJob
) -> None:
    """Includes a GIF and a PNG named .jpg, a truncated file, unusual EXIF data and large photos."""
    originals = [path for name in ("full", "bad") for path in (pets / name / "images").iterdir()]
    (tmp_path / "photos").mkdir()
    for path in originals:
        (tmp_path / "photos" / path.name).symlink_to(path)
    done = call_job("predict", "--checkpoint", storage / "first", "--images", "photos", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert f"{len(originals)} rows, 0 failed" in done.stdout
    for path in originals:
        with Image.open(path) as photo, Image.open(tmp_path / "out" / "masks" / f"{path.stem}.png") as mask:
            assert mask.size == photo.size
