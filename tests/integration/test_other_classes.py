"""Another set than the pets: five classes, masks of colours, an ignored colour, a list for each side of the split."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import RunJob, run_in
from drawn import untrained
from PIL import Image, ImageDraw

from petseg.data import manifest, splits
from petseg.errors import InputError
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
    """A photo in the true colours, made dull and noisy, and its mask, in which a strip is void."""
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
    """photos/, masks/ and lists of 40, 12 and 11 of the 64 pairs, written as various authors write them."""
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
def test_five_classes_of_colours_are_learnt_predicted_and_scored(landscapes: Path) -> None:
    weights = ("--class-weights", "balanced")
    done = run_in(landscapes, "train", *FLAGS, *LISTS, *SMALL, *weights, "--epochs", 24, "--name", "five")
    assert done.returncode == 0, done.stderr
    assert "1 of 64 pairs are in no list of --split-file, and left out" in done.stdout
    assert "training on 40 pairs, validating on 12" in done.stdout
    split = pq.read_table(landscapes / "runs" / "five" / "manifest.parquet")["split"].to_pylist()
    assert [split.count(side) for side in splits.SIDES] == [40, 12, 11]
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
def test_a_prepared_set_trains_to_the_same_numbers(landscapes: Path) -> None:
    """From the files and from shards of them: not a bit differs."""
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
        ((*FLAGS, "--split-file", "val.csv"), "0 pairs to train on, beside 12 for validation, do not fill"),
        (("--data", "nowhere"), "nowhere"),
        (("--data", "photos"), "photos"),
    ],
    ids=str,
)
@pytest.mark.ray
def test_refusals(flags: tuple[object, ...], message: str, landscapes: Path) -> None:
    done = run_in(landscapes, "train", *flags, "--name", "refused")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (landscapes / "runs" / "refused").exists()


def test_a_list_with_none_of_the_pairs_is_refused(landscapes: Path) -> None:
    pairs = manifest.discover(str(landscapes / "photos"), str(landscapes / "masks"))
    (landscapes / "other.txt").write_text("b/77 train\n")
    with pytest.raises(InputError, match=r"none of the ids in it is that of a pair, such as a/00; ids are paths"):
        splits.assign(pairs, (str(landscapes / "other.txt"),))


def test_ids_may_have_spaces_and_those_that_are_no_pair_s_are_named(tmp_path: Path) -> None:
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
        for stem in ("my cat 1", "dog"):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{stem}.png")
    pairs = manifest.discover(str(tmp_path / "photos"), str(tmp_path / "masks"))
    (tmp_path / "train.txt").write_text("\ufeffmy cat 1.png\ndog 3 4\ncow 5 6\n", encoding="utf-8")
    sides, unknown = splits.assign(pairs, (f"train={tmp_path}/train.txt",))
    assert sides["train"]["id"].to_pylist() == ["dog", "my cat 1"] and unknown == ["cow"]
    (tmp_path / "val.txt").write_text("horse\n")
    with pytest.raises(InputError, match=r"val.txt: none of the ids in it is that of a pair, such as dog"):
        splits.assign(pairs, (f"train={tmp_path}/train.txt", f"val={tmp_path}/val.txt"))
    pq.write_table(pairs.select(["id"]), tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match=r"manifest.parquet: no Parquet file with columns id and split"):
        splits.assign(pairs, (str(tmp_path / "manifest.parquet"),))


def test_the_manifest_of_a_run_is_a_list(landscapes: Path, tmp_path: Path) -> None:
    pairs = manifest.discover(str(landscapes / "photos"), str(landscapes / "masks"))
    sides, unknown = splits.assign(pairs, tuple(str(landscapes / name) for name in ("val.csv",)))
    assert [sides[side].num_rows for side in splits.SIDES] == [0, 12, 0] and unknown == []
    listed = pairs.slice(3, 2).append_column("split", [["train", "test"]])
    pq.write_table(listed, tmp_path / "manifest.parquet")
    sides, _ = splits.assign(pairs, (str(tmp_path / "manifest.parquet"),))
    assert (sides["train"]["id"].to_pylist(), sides["test"]["id"].to_pylist()) == (["a/03"], ["a/04"])


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_begins_with_the_weights_of_another(run_job: RunJob, drawn: tuple[Path, Path], tmp_path: Path) -> None:
    """Two classes instead of three; the last layer is made anew, and the line says so."""
    common = (*("--images", drawn[0], "--masks", drawn[1]), *SMALL, "--epochs", 1, "--val-count", 7)
    first = untrained(tmp_path)
    pet_or_not = ("--classes", "pet,other", "--label-map", "1:pet,2:other,3:other", "--learning-rate", 1e-9)
    second = run_job("train", *common, *pet_or_not, "--init-from", first, "--name", "second")
    assert second.returncode == 0, second.stderr
    assert "knows pet, background, border, not pet, other; the last layer is made anew" in second.stdout
    runs = [checkpoint.load_model(checkpoint.find(str(run))) for run in (first, tmp_path / "runs" / "second")]
    before, after = (network.get_parameter("entry.weight") for network in runs)
    assert torch.allclose(before, after, atol=1e-6)
