"""Shards of an evaluation: sums that do not depend on how the work was divided, and given masks."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from checkpoints import CONFIG, all_classes_network
from conftest import PAIRS
from PIL import Image

from petseg import files
from petseg.config.evaluate import EvaluateConfig
from petseg.data import labels, manifest
from petseg.data.encode import encode_mask
from petseg.data.labels import LabelMap
from petseg.errors import InputError
from petseg.evaluation import shards, subjects
from petseg.evaluation.evaluator import Evaluator
from petseg.evaluation.scores import scores
from petseg.evaluation.shards import Summary, Target, Work
from petseg.inference.plan import FORMAT
from petseg.inference.predictor import Predictor

MODEL = dataclasses.replace(CONFIG, image_size=(32, 48))
LABEL_MAP = LabelMap.parse("", 3)


@pytest.fixture(scope="module")
def scorer() -> Evaluator:
    predictor = Predictor(all_classes_network(MODEL), torch.device("cpu"), 4, MODEL.image_size, "fp32", threads=2)
    return Evaluator(predictor, MODEL, LABEL_MAP, 10**6, 2, "border")


@pytest.fixture
def pairs(drawn: tuple[Path, Path]) -> pa.Table:
    return manifest.discover(*map(str, drawn))


def make_target(folder: Path, pairs: pa.Table) -> Target:
    return Target(str(folder), -(-pairs.num_rows // 5), "fingerprint", 5)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / files.EVALUATION_SHARDS).iterdir()}


def test_work_sums_and_files_do_not_depend_on_order_and_kills(
    scorer: Evaluator, pairs: pa.Table, tmp_path: Path
) -> None:
    whole, parts = make_target(tmp_path / "whole", pairs), make_target(tmp_path / "parts", pairs)
    done = {shard: Work(pairs, whole, None, [shard]).score(scorer, shard) for shard in range(5)}
    for shard in (3, 1):
        Work(pairs, parts, None, [shard]).score(scorer, shard)
    broken = tmp_path / "parts" / parts.name(1)
    broken.write_bytes(broken.read_bytes()[:-20])
    found = shards.find_done(parts)
    assert found == {3: done[3]}
    work = Work(pairs, parts, None, [4, 2, 1, 0])
    found |= {shard: work.score(scorer, shard) for shard in work.shards}
    assert found == done == shards.find_done(parts)
    assert shard_bytes(tmp_path / "parts") == shard_bytes(tmp_path / "whole")
    results = list(scorer.results(pairs))
    for view, counts in shards.total(done, scorer.views).items():
        assert torch.equal(counts.confusion, sum(result.counts[view].confusion for result in results))  # pyright: ignore
        assert counts.cross_entropy == pytest.approx(math.fsum(result.counts[view].cross_entropy for result in results))
    rows = shards.read_rows(whole, range(5))
    assert rows["id"].to_pylist() == pairs["id"].to_pylist() and rows["error"].null_count == PAIRS


def test_merge_unclear_pair_that_fails_is_counted() -> None:
    before = Summary(4, 1, [["a", "broken"]], {"unclear": 2}, [1, 2], {"one": [1, "d"]}, [])
    added = Summary(2, 1, [["c", "gone"]], {"unclear": 1}, [], {"one": [1, "b"]}, [])
    assert shards._merge(before, added) == Summary(
        4, 2, [["a", "broken"], ["c", "gone"]], {"unclear": 2}, [], {"one": [2, "d"]}, []
    )


def test_find_done_shards_of_other_settings_are_not_done(scorer: Evaluator, pairs: pa.Table, tmp_path: Path) -> None:
    target = make_target(tmp_path, pairs)
    Work(pairs, target, None, [0]).score(scorer, 0)
    assert shards.find_done(target).keys() == {0}
    assert shards.find_done(dataclasses.replace(target, fingerprint="other")) == {}
    plan = {"label_map": "0:0"}
    assert shards.make_target("a", 9, plan).fingerprint != shards.make_target("a", 9, plan | {"limit": 1}).fingerprint


def test_total_without_a_scored_pair_is_empty(scorer: Evaluator, pairs: pa.Table, tmp_path: Path) -> None:
    gone = pairs.slice(0, 5).set_column(1, "image", pa.array([str(tmp_path / "gone.jpg")] * 5))
    summary = Work(gone, make_target(tmp_path, gone), None, [0]).score(scorer, 0)
    assert (summary.rows, summary.failed, summary.counts, len(summary.first_errors)) == (5, 5, [], 5)
    assert shards.total({0: summary}, scorer.views) == {}


def given(images: Path, masks: Path, predicted: Path, **flags: Any) -> subjects.Subject:
    config = EvaluateConfig(images=str(images), masks=str(masks), from_=str(predicted), output="out", **flags)
    return subjects.find_masks(config, manifest.discover(str(images), str(masks), versions=True))


def score(subject: subjects.Subject, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (scores, rows) of given masks."""
    target, scorer = make_target(folder, subject.pairs), subject.settings.build(2)
    work = Work(subject.pairs, target, None, list(range(target.num_shards)))
    done: dict[int, Summary] = {shard: work.score(scorer, shard) for shard in work.shards}
    totals = shards.total(done, scorer.views)
    found = scores(totals[scorer.views[0]], subject.class_names) if totals else {}
    return found, shards.read_rows(target, work.shards).to_pylist()


@pytest.fixture
def described(drawn: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The generated set, with a `classes.json`."""
    masks = shutil.copytree(drawn[1], tmp_path / "masks")
    classes = {"classes": ["pet", "background", "border"], "label_map": "1:0,2:1,3:2"}
    (masks / files.CLASSES).write_text(json.dumps(classes))
    return drawn[0], masks


def test_given_masks_of_a_prediction_have_the_scores_of_its_network(
    scorer: Evaluator, described: tuple[Path, Path], tmp_path: Path
) -> None:
    predicted = tmp_path / "predicted"
    (predicted / "masks").mkdir(parents=True)
    pairs = manifest.discover(*map(str, described))
    for row_id, class_ids in zip(pairs["id"].to_pylist(), scorer.masks(pairs), strict=True):
        assert class_ids is not None
        (predicted / "masks" / f"{row_id}.png").write_bytes(encode_mask(class_ids, labels.palette(3)))
    plan = {"manifest_sha256": "", "shard_size": 1, "classes": MODEL.class_names, "palette": labels.palette(3)}
    plan["format"] = FORMAT
    (predicted / files.PLAN).write_text(json.dumps(plan))
    found, rows = score(given(*described, predicted), tmp_path / "out")
    target = make_target(tmp_path / "network", pairs)
    done = {shard: Work(pairs, target, None, [shard]).score(scorer, shard) for shard in range(5)}
    view = next(view for view in scorer.views if view.at_original_size)
    expected = scores(shards.total(done, scorer.views)[view], MODEL.class_names)
    assert found == expected | {"cross_entropy": None}
    assert rows[0]["miou"] is not None and rows[0]["cross_entropy"] is None


def test_given_masks_of_another_program_have_the_values_of_the_true_masks(
    described: tuple[Path, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(described[1], tmp_path / "other", ignore=shutil.ignore_patterns("*.json"))
    found, _ = score(given(*described, other), tmp_path / "out")
    assert found["miou"] == found["pixel_accuracy"] == found["boundary_miou"] == 1
    assert list(found["iou"]) == ["pet", "background", "border"]
    classes = {"classes": ["pet", "background", "border"], "label_map": "1:1,2:0,3:2"}
    (other / files.CLASSES).write_text(json.dumps(classes))
    swapped, _ = score(given(*described, other), tmp_path / "swapped")
    assert swapped["iou"]["pet"] == swapped["iou"]["background"] == 0 and swapped["iou"]["border"] == 1


def test_given_masks_unusable_ones_are_error_rows(described: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(described[1], tmp_path / "other")
    first, second, third, *_ = sorted(other.glob("*.png"))
    Image.new("L", (5, 4), 1).save(first)
    Image.fromarray(np.where(np.asarray(Image.open(second)) == 3, 255, 1).astype(np.uint8)).save(second)
    third.write_bytes(b"text")
    fourth, fifth = sorted(other.glob("*.png"))[3:5]
    fifth.unlink()  # such as of a photo that could not be predicted
    subject = given(*described, other)
    fourth.unlink()
    _, rows = score(subject, tmp_path / "out")
    errors = [row["error"] for row in rows]
    assert errors[0].startswith("the predicted mask: its size 5 × 4 differs from its photo's ")
    assert errors[1] == "the predicted mask: it has pixels without a class"
    assert errors[2].startswith("the predicted mask: not an image that can be read")
    for error, path in zip(errors[3:], (fourth, fifth), strict=False):
        assert error == f"{path}: cannot be read: No such file or directory"
    assert errors[5:] == [None] * (PAIRS - 5)


def test_given_masks_missing_masks_or_classes_are_refused(described: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(described[1], tmp_path / "other")
    (tmp_path / "none").mkdir()
    Image.new("L", (5, 4), 1).save(tmp_path / "none" / "another.png")
    with pytest.raises(InputError, match=f"--from {tmp_path}/none: no mask there has the name of a photo, such as pet"):
        given(*described, tmp_path / "none")
    plan = {"manifest_sha256": "", "shard_size": 1, "classes": ["cat", "dog"], "palette": labels.palette(2)}
    (other / files.PLAN).write_text(json.dumps(plan))
    with pytest.raises(InputError, match="written by another version of petseg; predict again"):
        given(*described, other)
    (other / files.PLAN).write_text(json.dumps(plan | {"format": FORMAT}))
    with pytest.raises(InputError, match="its classes are pet, background, border, and those of --from cat, dog; give"):
        given(*described, other)
    with pytest.raises(InputError, match="the prediction has no masks/"):
        given(*described, other, label_map="1:0,2:1,3:1")
    (other / files.PLAN).unlink()
    (described[1] / files.CLASSES).unlink()
    with pytest.raises(InputError, match=r"the classes are not known; put a classes\.json into"):
        given(*described, other)


def test_results_of_pairs_decoded_in_a_subprocess_are_the_same(
    scorer: Evaluator, described: tuple[Path, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(described[1], tmp_path / "other")
    subject = given(*described, other)
    few = subject.pairs.slice(0, 2)
    for of in (scorer, subject.settings.build(1)):
        here, there = (list(of.results(few, in_subprocess=value)) for value in (False, True))
        assert [result.row for result in here] == [result.row for result in there]
