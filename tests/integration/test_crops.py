"""Training on crops, and what follows the checkpoint's scale: validation, predict, evaluate and load."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RunJob, assert_refused, call_in
from PIL import Image, ImageDraw

import petseg
from petseg.models import checkpoint
from petseg.training import run_folder

CROPS = ("--crop", 32, 48, "--scale", 0.5, "--label-map", "0:0,1:1", "--num-classes", 2, "--precision", "fp32")
SIZES = [(128, 160), (160, 128), (70, 200), (128, 160), (128, 160), (40, 50)]


@pytest.fixture(scope="module")
def folder(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and masks of several sizes, one of them smaller than a crop, and the run `first` on crops of them."""
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(1)
    for name in ("photos", "masks"):
        (folder / name).mkdir()
    for number, (height, width) in enumerate(SIZES):
        photo = Image.fromarray(rng.integers(60, 120, (height, width, 3), np.uint8))
        mask = Image.new("L", (width, height))
        for _ in range(6):
            x, y = int(rng.integers(width)), int(rng.integers(height))
            ImageDraw.Draw(photo).ellipse((x - 9, y - 9, x + 9, y + 9), fill=(220, 200, 30))
            ImageDraw.Draw(mask).ellipse((x - 9, y - 9, x + 9, y + 9), fill=1)
        photo.save(folder / "photos" / f"{number}.png")
        mask.save(folder / "masks" / f"{number}.png")
    (folder / "lists.txt").write_text("".join(f"{i} {'val' if i in (4, 5) else 'train'}\n" for i in range(len(SIZES))))
    flags = ("--images", "photos", "--masks", "masks", "--split-file", "lists.txt", *CROPS, "--batch-size", 4)
    done = call_in(folder, "train", *flags, "--epochs", 2, "--name", "first")
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


@pytest.mark.ray
def test_train_on_crops_counts_them_and_keeps_the_scale(folder: Path) -> None:
    printed = (folder / "printed").read_text()
    # 64 × 96 pixels of the photo: 2 × 2 crops, 3 × 2, 2 × 3 and 2 × 2; then 3 × 2 overlapping tiles, and 1.
    assert "training on 4 pairs, validating on 2 (20 and 7 crops)" in printed
    model = checkpoint.find(str(folder / "runs" / "first")).model
    assert (model.image_size, model.scale) == ((32, 48), 0.5)


@pytest.mark.ray
def test_evaluate_a_network_of_crops_counts_each_pixel_at_the_original_size(folder: Path, call_job: RunJob) -> None:
    for name in ("photos", "masks"):
        (folder / "held-out" / name).mkdir(parents=True)
        for number in (4, 5):
            (folder / "held-out" / name / f"{number}.png").symlink_to(folder / name / f"{number}.png")
    pairs = ("--images", folder / "held-out" / "photos", "--masks", folder / "held-out" / "masks")
    run = folder / "runs" / "first"
    done = call_job("evaluate", "--checkpoint", run, *pairs, "--output", folder / "scores", "--exclude-class", "")
    assert done.returncode == 0, done.stderr
    assert "the network's size" not in done.stdout
    scores = json.loads((folder / "scores" / "metrics.json").read_text())
    assert scores["size"] == "original" and scores["failed"] == 0
    assert np.sum(scores["confusion"]) == 128 * 160 + 40 * 50
    [trained] = [
        epoch for epoch in run_folder.read_metrics(str(run)) if epoch["epoch"] == checkpoint.find(str(run)).epoch
    ]
    assert scores["cross_entropy"] == pytest.approx(trained["val_loss"], rel=0.1)  # not blended, at half the size


@pytest.mark.ray
def test_predict_and_load_cut_photos_as_in_training(folder: Path, call_job: RunJob, tmp_path: Path) -> None:
    run = folder / "runs" / "first"
    flags = ("--checkpoint", run, "--images", folder / "photos", "--precision", "fp32")
    done = call_job("predict", *flags, "--output", "out")
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())["plan"]
    assert (plan["tile"], plan["tile_overlap"]) == ([64, 96], 16)
    segmenter = petseg.load(str(run), precision="fp32")
    for number, size in enumerate(SIZES):
        with Image.open(tmp_path / "out" / "masks" / f"{number}.png") as written:
            ids = np.asarray(written)
        assert ids.shape == size
        assert np.array_equal(ids, segmenter.predict(folder / "photos" / f"{number}.png").class_ids)
    other = call_job("predict", *flags, "--output", "out", "--tile", 200)
    assert_refused(other, "tile (was [64, 96], now [200, 200])")
    same_size = call_job("predict", *flags, "--output", "out", "--tile", 64, 96)  # resizes small photos as a whole
    assert_refused(same_size, "keeps_scale (was True, now None)")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--crop", 512),
            "--crop 512 --scale 1: a crop covers 512 × 512 pixels of a photo, and no training photo is larger",
        ),
        (("--crop", 32, 48, "--batch-size", 512), "crops do not fill one batch of 512; add pairs"),
    ],
)
def test_train_crops_that_do_not_work_are_refused(
    flags: tuple[object, ...], message: str, folder: Path, call_job: RunJob, tmp_path: Path
) -> None:
    pairs = ("--images", folder / "photos", "--masks", folder / "masks", "--label-map", "0:0,1:1", "--num-classes", 2)
    assert_refused(call_job("train", *pairs, "--batch-size", 4, *flags), message)
    assert not (tmp_path / "runs").exists()
