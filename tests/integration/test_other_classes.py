"""A set other than the pets: five classes, colour masks, an ignored colour, a list file for each split."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import RunJob, assert_refused, call_in, run_in
from drawn import untrained
from PIL import Image, ImageDraw

from petseg.config.base import SPLITS
from petseg.models import checkpoint
from petseg.training import run_folder

COLOURS = {
    "ground": (128, 64, 0),
    "sky": (70, 130, 180),
    "sun": (255, 255, 0),
    "house": (220, 20, 60),
    "tree": (0, 128, 1),
}
VOID = (224, 224, 192)
LABEL_MAP = ",".join(f"#{red:02X}{green:02x}{blue:02x}:{name}" for name, (red, green, blue) in COLOURS.items())
CLASSES = ("--classes", ",".join(COLOURS), "--label-map", LABEL_MAP, "--ignore-label", "#E0E0C0")
PAIRS = 64


def landscape(index: int) -> tuple[Image.Image, Image.Image]:
    """Return a noisy photo in dull class colours, and its mask, in which a strip is void."""
    rng = np.random.default_rng(index)
    mask = Image.new("RGB", (96, 64), COLOURS["sky"])
    draw = ImageDraw.Draw(mask)
    horizon = int(rng.integers(28, 44))
    draw.rectangle((0, horizon, 96, 64), fill=COLOURS["ground"])
    x, y = int(rng.integers(8, 80)), int(rng.integers(8, 18))
    draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=COLOURS["sun"])
    for name, half in (("house", 10), ("tree", 6)):
        x = int(rng.integers(12, 84))
        draw.rectangle((x - half, horizon - 14, x + half, horizon + 8), fill=COLOURS[name])
    dull = np.asarray(mask, np.float32) * 0.5 + 60 + rng.normal(0, 12, (64, 96, 3))
    photo = Image.fromarray(dull.clip(0, 255).astype(np.uint8))
    draw.rectangle((0, 0, 96, 2), fill=VOID)
    return photo, mask


@pytest.fixture(scope="module")
def landscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with photos/, masks/ and lists of 40, 12 and 11 of the 64 pairs, each in another common format."""
    folder = tmp_path_factory.mktemp("landscapes")
    for name in ("photos", "masks"):
        (folder / name / "a").mkdir(parents=True)
    for index in range(PAIRS):
        photo, mask = landscape(index)
        photo.save(folder / "photos" / "a" / f"{index:02}.jpg", quality=95)
        mask.save(folder / "masks" / "a" / f"{index:02}.png")
    (folder / "train.txt").write_text("# id class\n" + "".join(f"a/{i:02} 1 2\n" for i in range(40)))
    (folder / "val.csv").write_text("id,split\n" + "".join(f"a/{i:02}.jpg,val\n" for i in range(40, 52)))
    (folder / "test.txt").write_text("".join(f"a/{i:02}.png\n" for i in range(52, 63)))
    return folder


FLAGS = ("--images", "photos", "--masks", "masks", *CLASSES)
LISTS = ("--split-file", "train=train.txt", "val.csv", "test=test.txt")
SMALL = ("--image-size", 64, 96, "--cpus-per-worker", 1)


@pytest.mark.slow
@pytest.mark.ray
def test_train_five_colour_classes_are_learned_and_scored(landscapes: Path) -> None:
    weights = ("--class-weights", "balanced")
    done = run_in(landscapes, "train", *FLAGS, *LISTS, *SMALL, *weights, "--epochs", 24, "--name", "five")
    assert done.returncode == 0, done.stderr
    assert "1 of 64 pairs are in no list of --split-file, and left out" in done.stdout
    assert "training on 40 pairs, validating on 12" in done.stdout
    split = pq.read_table(landscapes / "runs" / "five" / "manifest.parquet")["split"].to_pylist()
    assert [split.count(side) for side in SPLITS] == [40, 12, 11]
    history = run_folder.read_metrics(str(landscapes / "runs" / "five"))
    assert list(history[-1]["val_iou"]) == list(COLOURS)
    assert max(epoch["val_miou"] for epoch in history) > 0.6

    for name in ("photos", "masks"):
        (landscapes / "test" / name).mkdir(parents=True)
        for index in range(52, 63):
            [source] = (landscapes / name / "a").glob(f"{index}.*")
            shutil.copy(source, landscapes / "test" / name)
    scored = run_in(
        landscapes,
        "evaluate",
        *("--checkpoint", "runs/five", "--images", "test/photos", "--masks", "test/masks", "--output", "scores"),
    )
    assert scored.returncode == 0, scored.stderr
    scores = json.loads((landscapes / "scores" / "metrics.json").read_text())
    assert list(scores["iou"]) == list(COLOURS) and scores["miou"] > 0.6
    assert np.sum(scores["confusion"]) == pytest.approx(11 * 61 / 64 * 64 * 96)  # three of 64 rows are void


@pytest.mark.slow
@pytest.mark.ray
def test_train_prepared_set_equals_training_on_files(landscapes: Path) -> None:
    """Training on the files and on shards of them gives identical weights."""
    prepared = run_in(landscapes, "prepare", "shards", *FLAGS, "--image-size", 64, 96, "--output", "set")
    assert prepared.returncode == 0, prepared.stderr
    common = ("--epochs", 1, "--batch-size", 4, "--cpus-per-worker", 1, "--precision", "fp32", *LISTS)
    sources = {"files": (*FLAGS, "--image-size", 64, 96), "shards": ("--data", "set")}
    histories, weights = [], []
    for name, flags in sources.items():
        done = run_in(landscapes, "train", *flags, *common, "--name", name)
        assert done.returncode == 0, done.stderr
        [epoch] = run_folder.read_metrics(str(landscapes / "runs" / name))
        histories.append({key: value for key, value in epoch.items() if key not in ("seconds", "train_images_per_s")})
        weights.append((landscapes / "runs" / name / "checkpoints" / "epoch-0001" / "model.pt").read_bytes())
    assert histories[0] == histories[1] and weights[0] == weights[1]
    found = checkpoint.find(str(landscapes / "runs" / "shards")).model
    assert found == checkpoint.find(str(landscapes / "runs" / "files")).model


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*FLAGS[:4], "--num-classes", 5), "it is a colour image (mode RGB)"),
        ((*FLAGS, "--num-classes", 4), "--num-classes 4: --classes has 5 names"),
        ((*FLAGS, "--split-file", "nowhere.txt"), "nowhere.txt: cannot be read: No such file"),
        ((*FLAGS, "--split-file", "train.txt"), "train.txt, line 2: an id and one of train, val, test are expected"),
        ((*FLAGS, "--split-file", "train=train.txt", "val=train.txt"), "is listed for val and for train"),
        (
            (*FLAGS, "--split-file", "val.csv"),
            "0 training pairs do not fill one batch of 8 (12 more are held",
        ),
        (("--data", "nowhere"), "nowhere"),
        (("--data", "photos"), "photos"),
    ],
    ids=str,
)
@pytest.mark.ray
def test_train_invalid_classes_or_split_file_is_refused(
    flags: tuple[object, ...], message: str, landscapes: Path
) -> None:
    done = call_in(landscapes, "train", *flags, "--name", "refused")
    assert_refused(done, message)
    assert not (landscapes / "runs" / "refused").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_train_init_from_other_classes_keeps_all_but_the_last_layer(
    run_job: RunJob, drawn: tuple[Path, Path], tmp_path: Path
) -> None:
    """Two classes instead of three: the last layer is new, and a printed line says so."""
    common = (*("--images", drawn[0], "--masks", drawn[1]), *SMALL, "--epochs", 1, "--val-count", 7)
    first = untrained(tmp_path)
    pet_or_not = ("--classes", "pet,other", "--label-map", "1:pet,2:other,3:other", "--learning-rate", 1e-9)
    second = run_job("train", *common, *pet_or_not, "--init-from", first, "--name", "second")
    assert second.returncode == 0, second.stderr
    assert (
        "has the classes pet, background, border, not pet, other; the last layer starts from random weights"
        in second.stdout
    )
    runs = [checkpoint.load_model(checkpoint.find(str(run))) for run in (first, tmp_path / "runs" / "second")]
    before, after = (network.get_parameter("entry.weight") for network in runs)
    assert torch.allclose(before, after, atol=1e-6)
