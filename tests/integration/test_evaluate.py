"""`jobs/evaluate.py` from its command line: scores, rows, pictures and messages. The scores: test_evaluator.py."""

import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import CONFIG, all_classes_network
from conftest import PAIRS, RunJob, assert_refused
from PIL import Image

from petseg.errors import InputError
from petseg.evaluation import evaluator, shards
from petseg.jobs import evaluate as job
from petseg.models import checkpoint

MODEL = dataclasses.replace(CONFIG, image_size=(32, 48))


SCORES = {
    "pixels",
    "cross_entropy",
    "pixel_accuracy",
    "miou",
    "iou",
    "dice",
    "boundary_miou",
    "boundary_iou",
    "confusion",
    "excluding_class",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch with `all_classes_network`. Do not change it."""
    run = tmp_path_factory.mktemp("saved") / "run"
    history = [{"epoch": 1, "val_loss": 1.0}]
    checkpoint.save(str(run), all_classes_network(MODEL), checkpoint.TrainState({}), MODEL, history)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """Copy of the run in the test's own folder."""
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def spoilt(drawn: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The generated set in a subfolder, with one broken photo."""
    for folder, name in zip(drawn, ("photos", "masks"), strict=True):
        shutil.copytree(folder, tmp_path / name / "a")
    (tmp_path / "photos" / "a" / "broken.jpg").write_bytes(b"text")
    Image.new("L", (5, 5), 1).save(tmp_path / "masks" / "a" / "broken.png")
    return tmp_path / "photos", tmp_path / "masks"


def test_evaluate_job_writes_scores_rows_and_pictures(
    run: Path, spoilt: tuple[Path, Path], run_job: RunJob, call_job: RunJob
) -> None:
    flags = ("--checkpoint", run, "--images", spoilt[0], "--masks", spoilt[1], "--output", "out")
    done = run_job("evaluate", *flags, "--precision", "fp32", "--exclude-class", "border")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    output = run.parent / "out"
    assert f"{PAIRS + 1} pairs, 1 failed: {output}/metrics.json" in lines
    assert any(line.startswith("  failed: a/broken: not an image") for line in lines)
    assert any(line.startswith(f"{PAIRS + 1}/{PAIRS + 1} images  100%") and " 1 failed" in line for line in lines)
    assert [
        line.split("cross-entropy")[0].strip() for line in lines if "cross-entropy 0" in line or "mIoU" in line
    ] == [
        "the network's size",
        "without border",
        "original size",
        "without border",
    ]
    assert {path.name for path in output.iterdir()} == {
        "config.json",
        "metrics.json",
        "per_image.parquet",
        "report.html",
        "status.json",
        "worst",
    }
    status = json.loads((output / "status.json").read_text())
    assert (status["job"], status["phase"], status["done"], status["failed"]) == ("evaluate", "finished", PAIRS + 1, 1)

    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    assert set(found) == SCORES | {
        *("size", "pairs", "failed", "original_size", "worst", "checkpoint", "settings", "plan_sha256")
    }
    assert set(found["original_size"]) == SCORES
    for of_size in (found, found["original_size"]):
        assert set(of_size["excluding_class"]) == SCORES - {"excluding_class"}
        assert list(of_size["iou"]) == list(MODEL.class_names) and len(of_size["confusion"]) == 3
        assert list(of_size["excluding_class"]["dice"]) == ["pet", "background"]
        assert sum(map(sum, of_size["confusion"])) == of_size["pixels"]
    assert (found["pairs"], found["failed"], found["pixels"]) == (PAIRS + 1, 1, PAIRS * 32 * 48)
    assert found["checkpoint"]["location"] == str(run / "checkpoints" / "epoch-0001")
    assert found["settings"]["label_map"] == "1:0,2:1,3:2,255:255" and found["settings"]["precision"] == "fp32"

    rows = pq.read_table(output / "per_image.parquet")
    assert rows.schema.equals(evaluator.ROWS)
    assert rows["error"].null_count == PAIRS and rows.num_rows == PAIRS + 1
    highest = sorted(rows["cross_entropy"].drop_null().to_pylist(), reverse=True)[: evaluator.WORST]
    assert [row["cross_entropy"] for row in found["worst"]] == highest
    for rank, row in enumerate(found["worst"], 1):
        assert row["picture"] == f"worst/{rank:02}-{row['id'].replace('/', '_')}.jpg"
        height, width = next((r["height"], r["width"]) for r in rows.to_pylist() if r["id"] == row["id"])
        with Image.open(output / row["picture"]) as picture:
            assert picture.size == (4 * width + 3 * 4, height)
    assert len(list((output / "worst").iterdir())) == evaluator.WORST

    again = call_job("evaluate", *flags, "--precision", "fp32", "--exclude-class", "border")
    assert again.returncode == 0 and "already finished; nothing to do\n" in again.stdout
    mask = next((spoilt[1] / "a").iterdir())
    for changed in ((), ("--precision", "fp32", "--exclude-class", "border")):  # other settings, another mask
        refused = call_job("evaluate", *flags, *changed)
        assert_refused(refused, f"error: --output {output}: it already has a metrics.json of other files or settings; ")
        os.utime(mask, (1, 1))
    (output / "worst" / "kept.jpg").write_bytes(b"not ours")
    fewer = call_job("evaluate", *flags, "--overwrite", "--limit", 2, "--label-map", "1:pet,2:1,3:255")
    assert fewer.returncode == 0, fewer.stderr
    found = json.loads((output / "metrics.json").read_text())
    assert (found["pairs"], found["failed"], len(found["worst"])) == (2, 1, 1)
    assert {path.name for path in (output / "worst").iterdir()} == {
        "kept.jpg",
        found["worst"][0]["picture"].removeprefix("worst/"),
    }


@pytest.mark.ray
def test_evaluate_job_two_workers_give_the_numbers_of_one_process(
    run: Path, spoilt: tuple[Path, Path], tmp_path: Path, call_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    flags = ("--checkpoint", run, "--images", spoilt[0], "--masks", spoilt[1], "--exclude-class", "border")
    on_ray = call_job("evaluate", *flags, "--output", "ray", "--num-workers", 2)
    assert on_ray.returncode == 0, on_ray.stderr
    monkeypatch.delenv("RAY_ADDRESS")
    here = call_job("evaluate", *flags, "--output", "here")
    assert here.returncode == 0, here.stderr
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("ray", "here")]
    for found in metrics:
        del found["settings"]
    assert metrics[0] == metrics[1]
    rows = [(tmp_path / name / "per_image.parquet").read_bytes() for name in ("ray", "here")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--output photos/out",
            "--output {}/photos/out: it is inside --images, so its files would be read as input",
        ),
        ("--output masks", "--output {}/masks: it is inside --masks, "),
        (
            "--output . --masks worst/masks",
            "--masks {0}/worst/masks: it is in a folder where --output {0} writes pictures",
        ),
        ("--limit 0", "--limit 0: give at least 1"),
        ("--checkpoint photos", "--checkpoint {}/photos: neither a run's folder nor a complete checkpoint"),
        ("--label-map 1:0,2:cat", "--label-map: '2:cat' is not \"raw value:class\""),
        pytest.param(
            "--use-gpu",
            "--use-gpu: torch finds no GPU on this machine; leave it out",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_evaluate_job_invalid_flags_are_refused(
    flags: str,
    message: str,
    run: Path,
    spoilt: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "evaluate.py --checkpoint run --images photos --masks masks --output out"
    monkeypatch.setattr(sys, "argv", [*command.split(), *flags.split()])
    with pytest.raises(InputError, match=re.escape(message.format(tmp_path))):
        job.main()
    assert not (tmp_path / "out").exists()


def test_evaluate_job_every_pair_fails_only_the_status_says_so(
    run: Path, spoilt: tuple[Path, Path], call_job: RunJob
) -> None:
    flags = ("--checkpoint", run, "--images", "photos", "--masks", "masks", "--output", "out", "--max-pixels", 10)
    done = call_job("evaluate", *flags)
    none = f"error: --images {spoilt[0]}: none of the {PAIRS + 1} pairs can be used: a/"
    assert_refused(done, none, "more than the limit of 10")
    assert [path.name for path in (run.parent / "out").iterdir()] == ["status.json"]
    status = json.loads((run.parent / "out" / "status.json").read_text())
    assert (status["phase"], status["exit_code"], status["failed"]) == ("failed", 2, PAIRS + 1)


def test_evaluate_job_unwritable_folder_stops_in_one_line(
    run: Path, drawn: tuple[Path, Path], tmp_path: Path, call_job: RunJob
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "worst").write_text("a file where a folder should be")
    (tmp_path / "out" / "metrics.json").write_text("of a job before, whose other files are about to go")
    flags = ("--checkpoint", run, "--images", drawn[0], "--masks", drawn[1], "--output", "out", "--limit", 2)
    done = call_job("evaluate", *flags, "--overwrite")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"stopped: --output {tmp_path}/out: cannot be written: Not a directory; ")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"_shards", "status.json", "worst"}  # what is scored is kept


def test_evaluate_job_unknown_excluded_class_is_refused(run: Path, drawn: tuple[Path, Path], call_job: RunJob) -> None:
    flags = ("--checkpoint", run, "--images", drawn[0], "--masks", drawn[1], "--output", "out")
    done = call_job("evaluate", *flags, "--exclude-class", "edge")
    assert_refused(done, "--exclude-class edge: no such class; give one of pet, background, border")
    assert not (run.parent / "out").exists()


def test_evaluate_job_other_classes_file_is_not_used_with_a_note(
    run: Path, spoilt: tuple[Path, Path], call_job: RunJob
) -> None:
    flags = ("--checkpoint", run, "--images", spoilt[0], "--masks", spoilt[1], "--output", "out", "--limit", 2)
    described = {"classes": ["a", "b"], "label_map": "1:0,2:1", "ignore_label": "3"}
    (spoilt[1] / "classes.json").write_text(json.dumps(described))
    done = call_job("evaluate", *flags)
    assert done.returncode == 0, done.stderr
    note = (
        f"note: {spoilt[1]}/classes.json is not used: its classes are a, b, not the network's; the raw values are "
        "mapped as in training"
    )
    assert note in done.stdout.splitlines()
