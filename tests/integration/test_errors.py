"""docs/errors.md has exactly the messages that the program really prints."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import CONFIG
from conftest import ROOT, make_plan
from PIL import Image

from petseg import cli, files, status, storage
from petseg.cli.verdict import verdict
from petseg.config.base import Config
from petseg.config.labelling import MasksConfig
from petseg.config.predict import PredictConfig
from petseg.config.train import TrainConfig
from petseg.data import decode, manifest, orientation
from petseg.data.classes import numbered_classes
from petseg.data.labels import LabelMap
from petseg.data.pairs import decode_pair
from petseg.inference import existing, output_folder
from petseg.inference.finished import read_finished
from petseg.jobs.prepare import check, masks, merge
from petseg.models import checkpoint, encoder_weights
from petseg.models.encoder_unet import EncoderUNet
from petseg.storage import checks
from petseg.training import run_folder

CATALOGUE = re.findall(r"^\| `(\S.*? .*?)` \| ", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)

ELSEWHERE = {
    "unknown command …": "cli/__init__",
    "out of memory; use": "cli/verdict",
    "out of memory: Ray ended one task": "cluster/memory",
    "out of memory: Ray ended a worker": "training/fit",
    "the memory of this machine is full": "cluster/connect",
    "--crop …: a crop covers": "training/training_set",
    "note: out of memory": "cluster/memory",
    "no Ray answers at …": "cluster/connect",
    "RAY_ADDRESS …": "cluster/connect",
    "Ray's worker processes": "cluster/connect",
    "TMPDIR …": "cluster/connect",
    "… is writing there": "storage/lease",
    "…: … has taken it over": "storage/hold",
    "the Ray at …": "cluster/connect",
    "--use-gpu: …": "cluster/resources",
    "… asks for …, but this machine": "cluster/resources",
    "… asks for …, and after": "cluster/resources",
    "--… …: on the disk of one machine": "cluster/resources",
    "…: model.pt lacks": "models/checkpoint",
    "the GPU has too little memory": "training/loop",
}
"""{start of an entry: file of petseg/ with its words}, for entries that need a cluster or more to be provoked."""


def pattern(entry: str) -> str:
    return re.escape(entry).replace("…", ".*")


def flags(cls: type[Config], line: str) -> Callable[[Path], object]:
    return lambda _: cli._parse(cls, line.split(), "job.py", None)


def png(pixels: Any, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(pixels: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def pages(page: bytes) -> bytes:
    """Return a TIFF with this picture on two pages."""
    buffer, image = io.BytesIO(), Image.open(io.BytesIO(page))
    image.save(buffer, "TIFF", save_all=True, append_images=[image])
    return buffer.getvalue()


EARLIER = merge.EarlierMasks("masks", numbered_classes(("a", "b")), {"a/b": "a/b.jpg"}, frozenset({"a/b"}))


def masks_config(folder: Path) -> MasksConfig:
    return MasksConfig(from_="coco", images="a", labels="b", output=str(folder), unlabelled="ignore")


def masks_with(folder: Path) -> None:
    for name in (files.CLASSES, files.PHOTOS):
        (folder / name).touch()


def prediction_with(folder: Path, plan: str, *names: str) -> None:
    for name in (files.PLAN, files.CONFIG, *names):
        (folder / name).write_text(plan)
    read_finished(str(folder), "--from")


PHOTO = png(np.zeros((2, 2, 3)), "RGB")


def pair(mask: bytes, photo: bytes = PHOTO) -> Callable[[Path], object]:
    return lambda _: decode_pair(photo, mask, (16, 16), LabelMap.parse("", 3), 10**6)


def discover(**folders: str) -> Callable[[Path], object]:
    """Return a function that calls `discover` on folders with these files, given separated by spaces."""

    def find(folder: Path) -> None:
        for name, listed in folders.items():
            (folder / name).mkdir()
            for file in listed.split():
                (folder / name / file).write_bytes(PHOTO)
        manifest.discover(*(str(folder / name) for name in folders))

    return find


def started_twice(folder: Path) -> None:
    settings = TrainConfig(storage=str(folder), name="first")
    storage.write(str(folder / "first" / "config.json"), b"{}")
    run_folder.resolve(settings, None)


def other_settings(folder: Path) -> None:
    discover(photos="a.png")(folder)
    output_folder.begin(make_plan(folder / "photos", folder / "out"))
    output_folder.find_done(make_plan(folder / "photos", folder / "out", settings={"checkpoint_sha256": "0"}))


def other_photos(folder: Path) -> None:
    discover(photos="a.png")(folder)
    plan = make_plan(folder / "photos", folder / "out")
    output_folder.begin(plan)
    storage.write(plan.target.location(0), b"")
    (folder / "photos" / "b.png").write_bytes(PHOTO)
    output_folder.find_done(make_plan(folder / "photos", folder / "out"))


def moved_photos(folder: Path) -> None:
    discover(photos="a.png")(folder)
    output_folder.begin(make_plan(folder / "photos", folder / "out"))
    (folder / "photos").rename(folder / "elsewhere")
    existing.find_start(make_plan(folder / "elsewhere", folder / "out"), append=True)


def other_files(folder: Path) -> None:
    discover(photos="a.png")(folder)
    storage.write(str(folder / "out" / "part.parquet"), b"")
    output_folder.find_done(make_plan(folder / "photos", folder / "out"))


def full_disk(folder: Path) -> None:
    with checks.translate_write_errors(str(folder)):
        raise OSError(28, "No space left on device")


def full_disk_in_training(folder: Path) -> None:
    with checks.translate_write_errors(str(folder), "--storage", run_folder.RESUME):
        raise OSError(28, "No space left on device")


def no_checkpoint_yet(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    checkpoint.find(str(folder))


def other_encoder(_: Path) -> None:
    weights = encoder_weights._installed_file()
    encoder_weights.load_encoder_weights(encoder_weights.with_encoder(CONFIG, "resnet18"), weights)


SITUATIONS: dict[str, Callable[[Path], object]] = {
    "a flag that is none": flags(TrainConfig, "--imags photos"),
    "flags left out": flags(PredictConfig, "--output o"),
    "a word for a number": flags(TrainConfig, "--epochs many"),
    "a fold that does not exist": flags(TrainConfig, "--val-fold 6/5"),
    "a word for another": flags(TrainConfig, "--recipe kera"),
    "a value too many": flags(TrainConfig, "--epochs 3 4"),
    "another job's config": lambda folder: (
        (folder / "config.json").write_text('{"png": true}'),
        cli._parse(TrainConfig, ["--config", f"{folder}/config.json"], "job.py", None),
    ),
    "a place without a status": lambda folder: status.read_status(str(folder)),
    "no folder": lambda folder: manifest.discover(str(folder / "nowhere")),
    "a file for a folder": lambda folder: ((folder / "a").touch(), manifest.discover(str(folder / "a"))),
    "an empty folder": discover(photos=""),
    "a folder of texts": discover(photos="a.txt"),
    "one folder for both": lambda folder: manifest.discover(str(folder), str(folder)),
    "a photo without a mask": discover(photos="a.jpg b.jpg", masks="a.png"),
    "a mask without a photo": discover(photos="a.jpg", masks="a.png b.png"),
    "two extensions for one name": discover(photos="a.jpg a.png"),
    "a mask in colour": pair(png([[[255, 0, 0]] * 2] * 2, "RGB")),
    "a mask that counts from 0": pair(png([[0, 1], [1, 2]])),
    "a black and white mask": pair(png([[0, 255], [255, 0]])),
    "a mask with a class too many": pair(png([[1, 2], [3, 4]])),
    "a mask as JPEG": pair(encoded(np.full((8, 8), 9), "JPEG"), encoded(np.zeros((8, 8, 3)))),
    "a mask with a page per class": pair(pages(png([[1, 2], [3, 1]]))),
    "masks of turned photos": lambda _: orientation.decide({"unclear": 2}, "a"),
    "a mask of another size": pair(png([[1, 2, 3]])),
    "a broken photo": pair(png([[1, 2], [3, 3]]), photo=b"broken"),
    "an output that is a file": lambda folder: (
        (folder / "out").touch(),
        checks.require_writable(f"{folder}/out", "--output"),
    ),
    "an output that is not ours to write": lambda folder: checks.require_writable(f"{folder}/out", "--output"),
    "a name in use": started_twice,
    "an output in use": other_settings,
    "an output of other photos": other_photos,
    "an output of moved photos": moved_photos,
    "an output with other files": other_files,
    "a full disk": full_disk,
    "a full disk in training": full_disk_in_training,
    "masks in the way": lambda folder: (masks_with(folder), masks._old_masks(masks_config(folder))),
    "nothing to merge with": lambda folder: merge.read_earlier(str(folder)),
    "a label of a new class": lambda _: merge.require_known_classes(EARLIER, "labels.json", ("cat",), "ignore"),
    "a photo under another id": lambda _: merge.require_same_ids(EARLIER, {"b": "a/b.jpg"}),
    "an unfinished prediction": lambda folder: prediction_with(folder, "{}"),
    "a prediction of another version": lambda folder: prediction_with(folder, "{}", files.SUCCESS),
    "no checkpoint": lambda folder: checkpoint.find(str(folder / "nowhere")),
    "no checkpoint yet": no_checkpoint_yet,
    "a checkpoint of other classes": lambda _: check._require_same_classes("run", CONFIG.class_names, ("cat", "dog")),
    "a checkpoint without the list of its pairs": lambda folder: run_folder.trained_ids(str(folder)),
    "an encoder that timm does not know": lambda _: EncoderUNet(2, "resnet999", input_scale=1.0, input_offset=0.0),
    "weights of another encoder": other_encoder,
    "a broken checkpoint": lambda folder: checkpoint.from_bytes(b"broken", f"{folder}/model.pt"),
}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """{situation: its message}."""
    monkeypatch.setattr(storage.os, "access", lambda path, mode: not str(path).endswith("not ours to write"))
    found = {}
    for name, provoke in SITUATIONS.items():
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(Exception) as caught:
            provoke(folder)
        line, code = verdict(caught.value)
        if not isinstance(caught.value, decode.DecodeError):  # the jobs print these as lines of their own
            assert code in (1, 2), (name, line)
        assert "\n" not in line and "Traceback" not in line
        found[name] = str(caught.value)
    return found


def test_error_catalogue_equals_the_messages_of_all_situations(said: dict[str, str]) -> None:
    shown = set()
    for name, message in said.items():
        entries = [entry for entry in CATALOGUE if re.fullmatch(pattern(entry), message)]
        assert len(entries) == 1, f"{name}: {message}: {entries}"
        shown |= set(entries)
    left = {entry for entry in CATALOGUE if not any(entry.startswith(begin) for begin in ELSEWHERE)}
    assert shown == left
    assert all(any(entry.startswith(begin) for entry in CATALOGUE) for begin in ELSEWHERE)


@pytest.mark.parametrize("begin", ELSEWHERE)
def test_error_catalogue_other_entries_are_in_the_source(begin: str) -> None:
    [entry] = [entry for entry in CATALOGUE if entry.startswith(begin)]
    source = (ROOT / "petseg" / f"{ELSEWHERE[begin]}.py").read_text()
    unbroken = re.sub(r'"\s+f?"', "", source)
    for words in entry.split("…"):
        assert words in unbroken
