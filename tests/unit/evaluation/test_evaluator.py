"""Counts, scores and rows of the evaluator, against hand-computed values and training's validation."""

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from checkpoints import CONFIG, all_classes_network
from conftest import PAIRS
from PIL import Image

from petseg.data import manifest
from petseg.data.labels import IGNORE_ID, LabelMap
from petseg.data.pairs import decode_pair
from petseg.evaluation import evaluator, metrics, scores
from petseg.evaluation.evaluator import Evaluator
from petseg.evaluation.scores import Counts, View
from petseg.inference import probabilities
from petseg.inference.predictor import Prediction, Predictor
from petseg.inference.probabilities import enlarge
from petseg.models.unet import UNet
from petseg.training import trainer

CPU = torch.device("cpu")
LIMIT = 10**6
MODEL = dataclasses.replace(CONFIG, image_size=(32, 48))
ALL, INNER = (0, 1, 2), (0, 1)
# 2 × 2 pixels: certainly pet, mostly background, mostly border, and undecided between pet and background.
PROBABILITIES = torch.tensor([[[1, 0.25], [0.125, 0.5]], [[0, 0.5], [0.375, 0.5]], [[0, 0.25], [0.5, 0]]])
TRUTH = np.array([[0, 0], [1, 2]], np.uint8)


def make_evaluator(model: UNet, threads: int = 2) -> Evaluator:
    predictor = Predictor(model, CPU, 4, MODEL.image_size, "fp32", threads=threads)
    return Evaluator(predictor, MODEL, LabelMap.parse("", 3), LIMIT, threads)


def total(results: list[evaluator.Result], view: View) -> Counts:
    found = [result.counts[view] for result in results if result.counts]
    return sum(found[1:], start=found[0])


def count(probabilities: torch.Tensor, truth: np.ndarray, classes: tuple[int, ...]) -> Counts:
    [counts] = scores.count(enlarge(probabilities, *truth.shape), truth, [classes])
    return counts


def test_count_all_classes_equals_hand_computed() -> None:
    counts = count(PROBABILITIES, TRUTH, ALL)
    assert counts.confusion.tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert counts.cross_entropy == pytest.approx(-math.log(1 * 0.25 * 0.375) + 87.3365, abs=1e-3)
    assert counts.boundary[:3, :3].tolist() == counts.confusion.tolist()  # every pixel is boundary


def test_count_excluded_class_chooses_among_the_others() -> None:
    """The border pixel is ignored. Where border was most probable, background is now, with (3/8) / (1/2)."""
    counts = count(PROBABILITIES, TRUTH, INNER)
    assert counts.confusion.tolist() == [[1, 1], [0, 1]]
    assert counts.cross_entropy == pytest.approx(-math.log(1 * (0.25 / 0.75) * (0.375 / 0.5)))


def test_scores_of_summed_counts_are_ratios_of_sums() -> None:
    one = Counts(torch.tensor([[2, 1], [0, 1]]), torch.tensor([[1, 1, 0], [0, 0, 0], [0, 0, 2]]), 6.0)
    other = Counts(torch.tensor([[0, 0], [3, 1]]), torch.tensor([[1, 0, 2], [0, 0, 1], [0, 0, 0]]), 2.0)
    assert scores.scores(one + other, ["cat", "rest"]) == {
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


def test_scores_undefined_score_is_null() -> None:
    nothing = scores.scores(count(PROBABILITIES, np.full((2, 2), IGNORE_ID, np.uint8), ALL), "abc")
    assert nothing["pixels"] == 0
    assert all(nothing[name] is None for name in ("cross_entropy", "pixel_accuracy", "miou", "boundary_miou"))
    not_a_number = scores.scores(count(PROBABILITIES * math.nan, TRUTH, ALL), "abc")
    assert not_a_number["cross_entropy"] is None
    json.dumps([nothing, not_a_number], allow_nan=False)


def test_views_excluded_class_exists_only_if_named() -> None:
    assert scores.views(("pet", "background", "border"), "border") == [
        View(False, ALL),
        View(False, INNER),
        View(True, ALL),
        View(True, INNER),
    ]
    assert scores.views(("pet", "background", "border")) == [View(False, ALL), View(True, ALL)]
    assert scores.views(("pet", "background", "border"), tiled=True) == [View(True, ALL)]
    assert scores.views(("class_0", "class_1")) == [View(False, (0, 1)), View(True, (0, 1))]
    counts = count(PROBABILITIES[:2], TRUTH % 2, (0, 1))
    found = scores.summarise({View(False, (0, 1)): counts, View(True, (0, 1)): counts}, ("a", "b"))
    assert found["excluding_class"] is None and found["original_size"]["excluding_class"] is None


@pytest.mark.parametrize("strip_values", [1, 2000])
def test_count_original_size_equals_the_prediction(strip_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(3, 16, 24, generator=generator) * 3).softmax(0)
    truth = np.random.default_rng(0).choice(np.array([0, 1, 2, IGNORE_ID], np.uint8), (61, 47))
    whole = count(values, truth, ALL)
    monkeypatch.setattr(probabilities, "STRIP_VALUES", strip_values)
    monkeypatch.setattr(metrics, "_PIXELS_AT_A_TIME", strip_values)
    counts = count(values, truth, ALL)
    mask = Prediction(values, 61, 47, keep_probabilities=False).mask()
    expected = metrics.confusion_matrix(torch.from_numpy(mask.class_ids), torch.from_numpy(truth), 3)
    assert torch.equal(counts.confusion, expected)
    assert torch.equal(counts.boundary, whole.boundary)
    assert counts.cross_entropy == pytest.approx(whole.cross_entropy)
    enlarged = torch.nn.functional.interpolate(values[None], (61, 47), mode="bilinear")
    nats = torch.nn.functional.nll_loss(
        enlarged.log(), torch.from_numpy(truth).long()[None], ignore_index=IGNORE_ID, reduction="sum"
    )
    assert counts.cross_entropy == pytest.approx(nats.item(), rel=1e-5)


def test_results_network_size_scores_equal_validation(drawn: tuple[Path, Path]) -> None:
    model, pairs = all_classes_network(MODEL), manifest.discover(*map(str, drawn))
    decoded = [
        decode_pair(
            Path(row["image"]).read_bytes(), Path(row["mask"]).read_bytes(), (32, 48), LabelMap.parse("", 3), LIMIT
        )
        for row in pairs.to_pylist()
    ]
    photos = torch.from_numpy(np.stack([pair.photo.pixels for pair in decoded])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([pair.class_ids for pair in decoded]))
    expected = trainer.validate(model, iter([(photos[:20], masks[:20]), (photos[20:], masks[20:])]), MODEL, "fp32", CPU)
    results = list(make_evaluator(model).results(pairs))
    found = scores.scores(total(results, View(False, ALL)), MODEL.class_names)
    assert min(expected["val_iou"].values()) > 0.02
    assert found["cross_entropy"] == pytest.approx(expected["val_loss"], rel=1e-4)
    assert found["pixel_accuracy"] == pytest.approx(expected["val_pixel_accuracy"], abs=1e-3)
    assert found["iou"] == pytest.approx(expected["val_iou"], abs=1e-3)
    assert found["pixels"] == PAIRS * 32 * 48

    at_original_size = total(results, View(True, ALL))
    assert at_original_size.confusion.sum() == sum(result.row["height"] * result.row["width"] for result in results)
    by_row = sum(result.row["cross_entropy"] for result in results) / PAIRS
    assert by_row == pytest.approx(found["cross_entropy"])


def test_results_unusable_pair_is_an_error_row(
    drawn: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "_PAIRS_AT_A_TIME", 3)
    pairs = manifest.discover(*map(str, drawn)).slice(0, 8)
    broken, other_size = tmp_path / "broken.jpg", tmp_path / "small.png"
    broken.write_bytes(b"text")
    Image.new("L", (5, 5), 1).save(other_size)
    photos, masks = pairs["image"].to_pylist(), pairs["mask"].to_pylist()
    photos[2], masks[3], masks[7] = str(broken), str(other_size), str(tmp_path / "gone.png")
    spoilt = pa.table({"id": pairs["id"], "image": photos, "mask": masks})
    results = list(make_evaluator(all_classes_network(MODEL)).results(spoilt))
    rows = pa.Table.from_pylist([result.row for result in results], evaluator.ROWS).to_pylist()
    assert [row["id"] for row in rows] == pairs["id"].to_pylist()
    errors = [row["error"] for row in rows]
    assert errors[2].startswith("not an image that can be read")
    assert errors[3].startswith("the mask: its size 5 × 5 differs from its photo's")
    assert errors[7] == f"{tmp_path}/gone.png: cannot be read: No such file or directory"
    for number, (row, result) in enumerate(zip(rows, results, strict=True)):
        assert bool(result.counts) == (number not in (2, 3, 7)) == (row["error"] is None)
        known = [value is not None for name, value in row.items() if name not in ("id", "error")]
        assert all(known) if result.counts else not any(known)
    alone = list(make_evaluator(all_classes_network(MODEL), threads=1).results(spoilt.slice(4, 1)))
    assert alone[0].row["miou"] == pytest.approx(rows[4]["miou"], abs=1e-3)
    assert list(make_evaluator(all_classes_network(MODEL)).pictures(spoilt.slice(2, 1))) == [None]


def test_worst_pairs_have_the_highest_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "WORST", 3)
    rows = pa.table({"cross_entropy": [0.5, None, 2.0, 0.5, 0.1, 0.7]})
    assert evaluator.worst_pairs(rows) == [2, 5, 0]
    assert evaluator.worst_pairs(rows.slice(0, 2)) == [0]
    given = pa.table({"cross_entropy": pa.nulls(3, pa.float64()), "pixel_accuracy": [0.9, 0.5, None]})
    assert evaluator.worst_pairs(given) == [1, 0]


def test_groups_large_pairs_are_in_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "_PIXELS_AT_A_TIME", 100)
    white = io.BytesIO()
    Image.new("L", (10, 20), 255).save(white, "PNG")
    label_map = LabelMap.parse("", 3)
    decoded = decode_pair(white.getvalue(), white.getvalue(), (16, 16), label_map, LIMIT)
    photos = [dataclasses.replace(decoded.photo, height=side) for side in (4, 6, 20, 1, 1)]
    pairs = [evaluator._Pair({}, dataclasses.replace(decoded, photo=photo)) for photo in photos]
    assert [len(group) for group in evaluator._groups(pairs)] == [2, 1, 2]
