"""Scores of a network on pairs: against hand, against training's validation, and from the job's command line."""

import json
import math
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PAIRS, RunJob
from PIL import Image

from petseg.config.base import ModelConfig
from petseg.data import labels, manifest
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.pairs import decode_pair
from petseg.errors import InputError
from petseg.evaluation import evaluator as evaluate
from petseg.evaluation import metrics
from petseg.evaluation.evaluator import Counts, Evaluator, View
from petseg.inference import predictor as predict
from petseg.inference.predictor import Prediction, Predictor
from petseg.jobs import evaluate as job
from petseg.models import checkpoint
from petseg.models.unet import UNet
from petseg.training import trainer

CPU = torch.device("cpu")
LIMIT = 10**6
MODEL = ModelConfig(
    num_classes=3,
    image_size=(32, 48),
    class_names=labels.class_names(3),
    palette=labels.palette(3),
    label_map="1:0,2:1,3:2",
)
ALL, INNER = (0, 1, 2), (0, 1)

# Of 2 × 2 pixels: surely a pet, more background than pet or border, more border than anything, and undecided.
PROBABILITIES = torch.tensor([[[1, 0.25], [0.125, 0.5]], [[0, 0.5], [0.375, 0.5]], [[0, 0.25], [0.5, 0]]])
TRUTH = np.array([[0, 0], [1, 2]], np.uint8)


def network() -> UNet:
    """One that has seen photos, and that says of each class that it is there."""
    torch.manual_seed(3)
    model = UNet(3, input_scale=MODEL.input_scale, input_offset=MODEL.input_offset)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randint(0, 256, (4, 3, 32, 48)))
        model.head.weight *= 8
    return model


def evaluator(model: UNet, threads: int = 2) -> Evaluator:
    predictor = Predictor(model, CPU, 4, MODEL.image_size, "fp32", threads=threads)
    return Evaluator(predictor, MODEL, LabelMap.parse("", 3), LIMIT, threads)


def total(results: list[evaluate.Result], view: View) -> Counts:
    found = [result.counts[view] for result in results if result.counts]
    return sum(found[1:], start=found[0])


def test_counts_of_all_classes() -> None:
    counts = evaluate.count(PROBABILITIES, TRUTH, ALL)
    assert counts.confusion.tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert counts.cross_entropy == pytest.approx(-math.log(1 * 0.25 * 0.375) + 87.3365, abs=1e-3)
    assert counts.boundary[:3, :3].tolist() == counts.confusion.tolist()  # all of so small a picture is boundary


def test_counts_without_a_class_choose_among_the_others() -> None:
    """The border's pixel is ignored; where the border was most probable, it is now background, by 3/8 of 1/2."""
    counts = evaluate.count(PROBABILITIES, TRUTH, INNER)
    assert counts.confusion.tolist() == [[1, 1], [0, 1]]
    assert counts.cross_entropy == pytest.approx(-math.log(1 * (0.25 / 0.75) * (0.375 / 0.5)))


def test_scores_are_ratios_of_sums() -> None:
    one = Counts(torch.tensor([[2, 1], [0, 1]]), torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 2]]), 6.0)
    other = Counts(torch.tensor([[0, 0], [3, 1]]), torch.tensor([[1, 0, 2], [0, 0, 1], [0, 0, 0]]), 2.0)
    assert evaluate.scores(one + other, ["cat", "rest"]) == {
        "pixels": 8,
        "cross_entropy": 1.0,
        "pixel_accuracy": 4 / 8,
        "miou": pytest.approx((2 / 6 + 2 / 6) / 2),
        "iou": {"cat": pytest.approx(2 / 6), "rest": pytest.approx(2 / 6)},
        "dice": {"cat": pytest.approx(4 / 8), "rest": pytest.approx(4 / 8)},
        "boundary_miou": pytest.approx((2 / 5 + 0) / 2),
        "boundary_iou": {"cat": pytest.approx(2 / 5), "rest": 0},
        "confusion": [[2, 1], [3, 2]],
    }


def test_a_score_that_is_not_defined_is_null() -> None:
    nothing = evaluate.scores(evaluate.count(PROBABILITIES, np.full((2, 2), IGNORE_ID, np.uint8), ALL), "abc")
    assert nothing["pixels"] == 0
    assert all(nothing[name] is None for name in ("cross_entropy", "pixel_accuracy", "miou", "boundary_miou"))
    not_a_number = evaluate.scores(evaluate.count(PROBABILITIES * math.nan, TRUTH, ALL), "abc")
    assert not_a_number["cross_entropy"] is None
    json.dumps([nothing, not_a_number], allow_nan=False)


def test_views_without_a_border_are_there_where_it_is() -> None:
    assert evaluate.views(("pet", "background", "border")) == [
        View(False, ALL),
        View(False, INNER),
        View(True, ALL),
        View(True, INNER),
    ]
    assert evaluate.views(("class_0", "class_1")) == [View(False, (0, 1)), View(True, (0, 1))]
    counts = evaluate.count(PROBABILITIES[:2], TRUTH % 2, (0, 1))
    found = evaluate.summary({View(False, (0, 1)): counts, View(True, (0, 1)): counts}, ("a", "b"))
    assert found["without_border"] is None and found["original_size"]["without_border"] is None


@pytest.mark.parametrize("strip_values", [1, 2000])
def test_at_the_original_size_the_answer_is_the_prediction_s(
    strip_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (torch.randn(3, 16, 24, generator=generator) * 3).softmax(0)
    truth = np.random.default_rng(0).choice(np.array([0, 1, 2, IGNORE_ID], np.uint8), (61, 47))
    whole = evaluate.count(probabilities, truth, ALL)
    monkeypatch.setattr(predict, "STRIP_VALUES", strip_values)
    monkeypatch.setattr(metrics, "_PIXELS_AT_A_TIME", strip_values)
    counts = evaluate.count(probabilities, truth, ALL)
    mask = Prediction(probabilities, 61, 47, keep_probabilities=False).mask()
    expected = metrics.confusion_matrix(torch.from_numpy(mask.class_ids), torch.from_numpy(truth), 3)
    assert torch.equal(counts.confusion, expected)
    assert torch.equal(counts.boundary, whole.boundary)
    assert counts.cross_entropy == pytest.approx(whole.cross_entropy)
    enlarged = torch.nn.functional.interpolate(probabilities[None], (61, 47), mode="bilinear")
    nats = torch.nn.functional.nll_loss(
        enlarged.log(), torch.from_numpy(truth).long()[None], ignore_index=IGNORE_ID, reduction="sum"
    )
    assert counts.cross_entropy == pytest.approx(nats.item(), rel=1e-5)


def test_at_the_network_s_size_the_scores_are_those_of_validation(drawn: tuple[Path, Path]) -> None:
    model, pairs = network(), manifest.discover(*map(str, drawn))
    decoded = [
        decode_pair(
            Path(row["image"]).read_bytes(), Path(row["mask"]).read_bytes(), (32, 48), LabelMap.parse("", 3), LIMIT
        )
        for row in pairs.to_pylist()
    ]
    photos = torch.from_numpy(np.stack([photo.pixels for photo, _ in decoded])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([mask for _, mask in decoded]))
    expected = trainer.validate(model, iter([(photos[:20], masks[:20]), (photos[20:], masks[20:])]), MODEL, "fp32", CPU)
    results = list(evaluator(model).results(pairs))
    found = evaluate.scores(total(results, View(False, ALL)), MODEL.class_names)
    assert min(expected["val_iou"].values()) > 0.02
    assert found["cross_entropy"] == pytest.approx(expected["val_loss"], rel=1e-4)
    assert found["pixel_accuracy"] == pytest.approx(expected["val_pixel_accuracy"], abs=1e-3)
    assert found["iou"] == pytest.approx(expected["val_iou"], abs=1e-3)
    assert found["pixels"] == PAIRS * 32 * 48

    at_original_size = total(results, View(True, ALL))
    assert at_original_size.confusion.sum() == sum(result.row["height"] * result.row["width"] for result in results)
    by_row = sum(result.row["cross_entropy"] for result in results) / PAIRS
    assert by_row == pytest.approx(found["cross_entropy"])


def test_a_pair_that_cannot_be_used_is_a_row(
    drawn: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_PAIRS_AT_A_TIME", 3)
    pairs = manifest.discover(*map(str, drawn)).slice(0, 8)
    broken, other_size = tmp_path / "broken.jpg", tmp_path / "small.png"
    broken.write_bytes(b"text")
    Image.new("L", (5, 5), 1).save(other_size)
    photos, masks = pairs["image"].to_pylist(), pairs["mask"].to_pylist()
    photos[2], masks[3], masks[7] = str(broken), str(other_size), str(tmp_path / "gone.png")
    spoilt = pa.table({"id": pairs["id"], "image": photos, "mask": masks})
    results = list(evaluator(network()).results(spoilt))
    rows = pa.Table.from_pylist([result.row for result in results], evaluate.ROWS).to_pylist()
    assert [row["id"] for row in rows] == pairs["id"].to_pylist()
    errors = [row["error"] for row in rows]
    assert errors[2].startswith("not an image that can be read")
    assert errors[3].startswith("the mask: its size 5 × 5 differs from its photo's")
    assert errors[7] == f"{tmp_path}/gone.png: cannot be read: No such file or directory"
    for number, (row, result) in enumerate(zip(rows, results, strict=True)):
        assert bool(result.counts) == (number not in (2, 3, 7)) == (row["error"] is None)
        known = [value is not None for name, value in row.items() if name not in ("id", "error")]
        assert all(known) if result.counts else not any(known)
    alone = list(evaluator(network(), threads=1).results(spoilt.slice(4, 1)))
    assert alone[0].row["miou"] == pytest.approx(rows[4]["miou"], abs=1e-3)
    assert list(evaluator(network()).pictures(spoilt.slice(2, 1))) == [None]


def test_the_worst_have_the_highest_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "WORST", 3)
    rows = pa.table({"cross_entropy": [0.5, None, 2.0, 0.5, 0.1, 0.7]})
    assert evaluate.worst(rows) == [2, 5, 0]
    assert evaluate.worst(rows.slice(0, 2)) == [0]


def test_no_more_is_decoded_ahead_than_was_said() -> None:
    taken: deque[int] = deque()

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        results = evaluate._in_order(pool, lambda number: number * 2, items(), ahead=5)
        assert [next(results) for _ in range(3)] == [0, 2, 4]
        assert len(taken) == 3 + 5
        assert list(results) == [2 * number for number in range(3, 100)]


def test_large_pairs_go_through_in_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_PIXELS_AT_A_TIME", 100)
    pairs = [evaluate._Pair({}, truth=np.zeros((side, 10), np.uint8)) for side in (4, 6, 20, 1, 1)]
    assert [len(group) for group in evaluate._groups(pairs)] == [2, 1, 2]


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
    "without_border",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = network()
    history = [{"epoch": 1, "val_loss": 1.0}]
    checkpoint.save(str(tmp_path / "run"), model, checkpoint.TrainState({}), MODEL, history)
    return tmp_path / "run"


@pytest.fixture
def spoilt(drawn: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The drawn set in a subfolder, and one photo that is broken."""
    for folder, name in zip(drawn, ("photos", "masks"), strict=True):
        shutil.copytree(folder, tmp_path / name / "a")
    (tmp_path / "photos" / "a" / "broken.jpg").write_bytes(b"text")
    Image.new("L", (5, 5), 1).save(tmp_path / "masks" / "a" / "broken.png")
    return tmp_path / "photos", tmp_path / "masks"


@pytest.mark.ray
def test_the_job_writes_scores_rows_and_pictures(run: Path, spoilt: tuple[Path, Path], run_job: RunJob) -> None:
    flags = ("--checkpoint", run, "--images", spoilt[0], "--masks", spoilt[1], "--output", "out")
    done = run_job("evaluate", *flags, "--precision", "fp32")
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
        "worst",
    }

    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    assert set(found) == SCORES | {"pairs", "failed", "original_size", "worst", "checkpoint", "settings"}
    assert set(found["original_size"]) == SCORES
    for of_size in (found, found["original_size"]):
        assert set(of_size["without_border"]) == SCORES - {"without_border"}
        assert list(of_size["iou"]) == list(MODEL.class_names) and len(of_size["confusion"]) == 3
        assert list(of_size["without_border"]["dice"]) == ["pet", "background"]
        assert sum(map(sum, of_size["confusion"])) == of_size["pixels"]
    assert (found["pairs"], found["failed"], found["pixels"]) == (PAIRS + 1, 1, PAIRS * 32 * 48)
    assert found["checkpoint"]["location"] == str(run / "checkpoints" / "epoch-0001")
    assert found["settings"]["label_map"] == "1:0,2:1,3:2,255:255" and found["settings"]["precision"] == "fp32"

    rows = pq.read_table(output / "per_image.parquet")
    assert rows.schema.equals(evaluate.ROWS)
    assert rows["error"].null_count == PAIRS and rows.num_rows == PAIRS + 1
    highest = sorted(rows["cross_entropy"].drop_null().to_pylist(), reverse=True)[: evaluate.WORST]
    assert [row["cross_entropy"] for row in found["worst"]] == highest
    for rank, row in enumerate(found["worst"], 1):
        assert row["picture"] == f"worst/{rank:02}-{row['id'].replace('/', '_')}.jpg"
        height, width = next((r["height"], r["width"]) for r in rows.to_pylist() if r["id"] == row["id"])
        with Image.open(output / row["picture"]) as picture:
            assert picture.size == (4 * width + 3 * 4, height)
    assert len(list((output / "worst").iterdir())) == evaluate.WORST

    again = run_job("evaluate", *flags)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert again.stderr.startswith(f"error: --output {output}: it has a metrics.json already; ")
    (output / "worst" / "kept.jpg").write_bytes(b"not ours")
    fewer = run_job("evaluate", *flags, "--overwrite", "--limit", 2, "--label-map", "1:0,2:1,3:2,0:255")
    assert fewer.returncode == 0, fewer.stderr
    found = json.loads((output / "metrics.json").read_text())
    assert (found["pairs"], found["failed"], len(found["worst"])) == (2, 1, 1)
    assert {path.name for path in (output / "worst").iterdir()} == {
        "kept.jpg",
        found["worst"][0]["picture"].removeprefix("worst/"),
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--output photos/out",
            "--output {}/photos/out: it lies in --images, so what is written would be taken for input",
        ),
        ("--output masks", "--output {}/masks: it lies in --masks, "),
        ("--output . --masks worst/masks", "--masks {0}/worst/masks: it lies where --output {0} puts its pictures"),
        ("--limit 0", "--limit 0: give at least 1"),
        ("--checkpoint photos", "--checkpoint {}/photos: neither a run's folder nor a complete checkpoint"),
        ("--label-map 1:0,2:1", "--label-map: no raw value gives class 2"),
        pytest.param(
            "--use-gpu",
            "--use-gpu: torch finds no GPU on this machine; leave it out",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_the_job_refuses_what_cannot_be(
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


@pytest.mark.ray
def test_where_every_pair_fails_nothing_is_written(run: Path, spoilt: tuple[Path, Path], run_job: RunJob) -> None:
    flags = ("--checkpoint", run, "--images", "photos", "--masks", "masks", "--output", "out", "--max-pixels", 10)
    done = run_job("evaluate", *flags)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: --images {spoilt[0]}: none of the {PAIRS + 1} pairs can be used: a/")
    assert "more than the limit of 10" in done.stderr
    assert not (run.parent / "out").exists()


@pytest.mark.ray
def test_a_folder_that_cannot_be_written_stops_the_job(
    run: Path, drawn: tuple[Path, Path], tmp_path: Path, run_job: RunJob
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "worst").write_text("a file where a folder should be")
    (tmp_path / "out" / "metrics.json").write_text("of a job before, whose other files are about to go")
    flags = ("--checkpoint", run, "--images", drawn[0], "--masks", drawn[1], "--output", "out", "--limit", 2)
    done = run_job("evaluate", *flags, "--overwrite")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"stopped: --output {tmp_path}/out: cannot be written: Not a directory; ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"worst"}
