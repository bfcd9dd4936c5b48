"""The reports of a run, an evaluation and a prediction, without Ray."""

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from conftest import do_shards, make_plan
from PIL import Image

from petseg import files
from petseg.config.model import ModelConfig
from petseg.data import labels, prepared
from petseg.inference import output_folder, survey
from petseg.inference.plan import Outputs, Plan, Summary
from petseg.models.unet import UNet
from petseg.pipelines.decode import Decoded
from petseg.reports import predict, sections
from petseg.reports.evaluate import EvaluationReport, evaluation_page
from petseg.reports.predict import PredictionReport, prediction_page
from petseg.reports.train import TrainingReport, training_page
from petseg.training import samples

CLASSES = ("pet", "background", "border")
MODEL = ModelConfig(
    num_classes=3, image_size=(32, 48), class_names=CLASSES, palette=labels.palette(3), label_map="1:0,2:1,3:2"
)


def text_of(page: bytes) -> str:
    content = re.sub(r"<(style|script)>.*?</\1>", "", page.decode(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", content).split())


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1612, 267)).save(buffer, "JPEG")
    return buffer.getvalue()


def sample(name: str, loss: float | None) -> dict[str, Any]:
    return {"id": name, "cross_entropy": loss, "miou": 0.5, "picture": picture()}


def epoch(number: int, loss: float | None) -> dict[str, Any]:
    iou = {"pet": 0.1 * number, "background": 0.8, "border": None}
    scores = {"val_loss": loss, "val_pixel_accuracy": 0.9, "val_miou": 0.45, "val_iou": iou}
    return {"epoch": number, "train_loss": 1 / number, **scores, "train_images_per_s": 60.0, "seconds": 5.0}


@pytest.mark.parametrize("losses", [[None, None], [], [3.0]])
def test_pick_samples_one_or_no_losses_are_handled(losses: list[float | None]) -> None:
    chosen = sections.pick_samples(losses)
    assert chosen == ({"Worst predictions": [0]} if losses == [3.0] else {})


@pytest.mark.parametrize("count", [2, 3, 10, 36, 1000])
def test_pick_samples_worst_best_and_others_are_distinct(count: int) -> None:
    losses: list[float | None] = [float((place * 7) % count if count % 7 else place) for place in range(count)]
    losses.insert(1, None)
    chosen = sections.pick_samples(losses)
    everything = [place for places in chosen.values() for place in places]
    assert len(set(everything)) == len(everything) == min(count, 3 * sections.SHOWN)
    assert 1 not in everything
    worst = chosen["Worst predictions"]
    assert losses[worst[0]] == count - 1
    of_worst = [losses[place] or 0.0 for place in worst]
    assert of_worst == sorted(of_worst, reverse=True)
    assert losses[chosen["Best predictions"][0]] == 0
    assert all(len(places) <= sections.SHOWN for places in chosen.values())


def run_page(**changes: Any) -> bytes:
    values: dict[str, Any] = {
        "name": "first",
        "settings": {"recipe": "best", "image_size": (160, 160), "init_from": "", "epochs": 3},
        "pairs": {"train": 1319, "val": 330, "test": 0},
        "history": [epoch(1, 0.9), epoch(2, 0.4), epoch(3, 0.5)],
        "samples": {"Worst predictions": [sample("a/<b>", 1.25)]},
        "confusion": [[8, 1, 1], [0, 9, 1], [0, 0, 0]],
        "confusion_of": "20 validation pairs",
        "seconds": {"decoding": 2.0, "training": 30.0},
        "commands": ["python jobs/predict.py --checkpoint runs/first"],
    }
    return training_page(TrainingReport(**(values | changes)))


def test_training_page_shows_scores_settings_and_samples() -> None:
    text = text_of(run_page())
    for said in (
        "Training: first",
        "best epoch 2 of 3",
        "validation loss 0.400",
        "pairs, train 1,319",
        "IoU by class, epoch 2 pet 0.2 background 0.8 border –",
        "Confusion, 20 validation pairs",
        "80.0 % 8",
        "a/&lt;b&gt;: cross-entropy 1.250, mIoU 0.500",
        "decoding 2 s training 30 s 32.0 s in all.",
        "image_size 160 160 init_from –",
        "python jobs/predict.py --checkpoint runs/first",
    ):
        assert said in text
    assert "pairs, test" not in text


def test_training_page_stopped_run_has_no_samples() -> None:
    text = text_of(run_page(samples={}, confusion=None, confusion_of="", history=[epoch(1, None)]))
    assert "best epoch 1 of 1 validation loss –" in text
    assert "Confusion" not in text and "predictions" not in text


def test_training_page_many_classes_has_no_confusion_matrix() -> None:
    names = [f"class_{number}" for number in range(sections.MATRIX_CLASSES + 1)]
    history = [epoch(1, 0.5) | {"val_iou": dict.fromkeys(names, 0.5)}]
    text = text_of(run_page(history=history, confusion=np.eye(len(names), dtype=int).tolist()))
    assert "Confusion" not in text and "IoU by class, by epoch" not in text and "class_30" in text


def decoded(count: int) -> Decoded:
    """Return decoded pairs without Ray. Each mask has one class, and the only block is a table."""
    rng = np.random.default_rng(1)
    photos = rng.integers(0, 256, (count, 32, 48, 3), np.uint8)
    masks = np.repeat(np.arange(count) % 3, 32 * 48).astype(np.uint8).reshape(count, 32, 48)
    rows = [
        {"id": f"p{number}", "height": 32, "width": 48, "image": photo.tobytes(), "mask": mask.tobytes()}
        for number, (photo, mask) in enumerate(zip(photos, masks, strict=True))
    ]
    table = pa.Table.from_pylist(rows, prepared.schema((32, 48)))
    return Decoded([table], (count,), (32, 48), (1, 1, 1))


@pytest.mark.parametrize(("count", "most"), [(7, 256), (20, 5)])
def test_predict_samples_pairs_are_evenly_spaced(count: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_SAMPLES", most)
    monkeypatch.setattr(ray, "get", lambda block: block)
    torch.manual_seed(1)
    network = UNet(3).eval()
    ids = pa.chunked_array([[f"p{number}" for number in range(count)]])
    looked, counts = samples.predict_samples(network, MODEL, decoded(count), ids)
    assert [found.id for found in looked] == [
        f"p{number * count // min(most, count)}" for number in range(min(most, count))
    ]
    assert int(counts.confusion.sum()) == len(looked) * 32 * 48
    of_class = [sum(int(found.id[1:]) % 3 == number for found in looked) * 32 * 48 for number in range(3)]
    assert counts.confusion.sum(1).tolist() == of_class
    shown = np.asarray(Image.open(io.BytesIO(looked[1].picture)))
    assert shown.shape == (32, 4 * 48 + 3 * 4, 3)
    truth = shown[:, 48 + 4 : 2 * 48 + 4].mean((0, 1))
    assert np.abs(truth - np.array(labels.palette(3)[int(looked[1].id[1:]) % 3])).max() < 6


def metrics(**changes: Any) -> dict[str, Any]:
    iou = {"pet": 0.7, "background": 0.9, "border": None}
    scores = {
        "size": "network",
        "cross_entropy": 0.5,
        "pixel_accuracy": 0.8,
        "miou": 0.8,
        "boundary_miou": 0.3,
        "iou": iou,
    }
    scores |= {"boundary_iou": iou, "confusion": [[8, 2, 0], [1, 9, 0], [0, 0, 0]], "excluding_class": None}
    where = {"location": "runs/first/checkpoints/epoch-0002", "epoch": 2, "sha256": "c0ffee"}
    whole = {
        "pairs": 10,
        "failed": 1,
        **scores,
        "original_size": scores,
        "checkpoint": where,
        "settings": {"limit": None, "exclude_class": "border"},
    }
    return whole | changes


def test_evaluation_page_shows_scores_samples_and_failures() -> None:
    sheets = {"Best predictions": [sample("good", 0.01)]}
    seconds = {"scoring": 3.0, "drawing": 1.0}
    report = EvaluationReport(
        metrics=metrics(), failures=[("bad", "the file is empty")], samples=sheets, seconds=seconds
    )
    text = text_of(evaluation_page(report))
    for said in (
        "pairs 10 failed 1 cross-entropy 0.500",
        "pairs/s 3",
        "the network's size 0.500 0.800 0.800 0.300",
        "Best predictions",
        "good: cross-entropy 0.010",
        "bad the file is empty",
        "limit –",
        "epoch 2 sha256 c0ffee",
    ):
        assert said.replace("'", "&#39;") in text or said in text
    assert "without border" not in text


def prediction_report(plan: Plan, summary: Summary) -> PredictionReport:
    return PredictionReport(
        plan=plan, model=MODEL, max_pixels=10**6, summary=summary, skipped={".heic": 1200}, seconds={}, status="1/s"
    )


@pytest.mark.parametrize("png", [True, False])
def test_prediction_page_shows_counts_and_readable_samples(
    photos: Path, tmp_path: Path, png: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(photos, tmp_path / "out", outputs=Outputs(png=png))
    output_folder.begin(plan)
    done = do_shards(plan, 0, 1, 2)
    summary = output_folder.finish(plan, done)
    (photos / "a" / "2.jpg").unlink()  # deleted meanwhile, so not shown
    (photos / "a" / "6.jpg").unlink()
    (photos / "a" / "6.jpg").mkdir()  # not readable, so not shown
    page = prediction_page(prediction_report(plan, summary))
    text = text_of(page)
    assert "photos 7 failed 1 mean confidence 0.750 last start 1/s" in text
    assert "Counted in 3 of 3 shards, 7 photos." in text
    assert "0.7 to 0.8 6 photos" in text
    assert "Skipped files" in text and ".heic 1,200" in text
    assert "not an image that can be read" in text and "Where the time went" not in text
    assert re.findall(r'alt="(.*?): photo"', page.decode()) == ["a/0", "a/4", "b/1", "b/5"]
    assert re.findall(r'alt="(.*?): mask"', page.decode()) == ["a/0", "a/4", "b/1", "b/5"]
    assert f"a/4 confidence 0.75 {photos}/a/4.jpg" in text and f'href="file://{photos}/a/4.jpg"' in page.decode()
    items = re.findall(r'data-classes="(\d*) *" data-score="0.75"', page.decode())
    assert items == ["0", "1", "1", "2"]  # the brightest channel of each, see `paint`
    sizes = [30 * 20, 31 * 20, 32 * 20, 34 * 20, 35 * 20, 36 * 20]
    red = 100 * (sizes[0] + sizes[5]) / sum(sizes)
    assert f"pet {red:.1f} %" in text

    monkeypatch.setattr(survey, "SHARDS", 2)
    found = survey.survey(plan, 3)
    assert found.shards == 2 and found.rows.num_rows == 6 and set(found.rows["shard"].to_pylist()) == {0, 1}


def test_prediction_gallery_least_confident_photo_is_first(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    output_folder.begin(plan)
    report = prediction_report(plan, output_folder.finish(plan, do_shards(plan, 0, 1, 2)))
    found = survey.survey(plan, 3)
    values = [None if row["error"] else 0.9 - 0.1 * index for index, row in enumerate(found.rows.to_pylist())]
    rows = found.rows.drop_columns(["confidence"]).append_column("confidence", pa.array(values))
    gallery = predict._samples_gallery(report, dataclasses.replace(found, rows=rows))
    assert gallery is not None and gallery.colours == dict(zip(CLASSES, labels.palette(3), strict=True))
    assert [item.id for item in gallery.items] == ["b/5", "b/1", "a/6", "a/4", "a/2", "a/0"]
    assert [item.score for item in gallery.items] == sorted(value for value in values if value is not None)


def test_prediction_page_every_photo_failed_has_no_samples(photos: Path, tmp_path: Path) -> None:
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"broken")
    plan = make_plan(photos, tmp_path / "out")
    output_folder.begin(plan)
    summary = output_folder.finish(plan, do_shards(plan, 0, 1, 2))
    text = text_of(prediction_page(prediction_report(plan, summary)))
    assert "photos 7 failed 7 mean confidence – last start 1/s" in text
    assert "pet 0 %" in text and "Samples" not in text


def test_save_report_write_error_is_only_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    sections.save_report(str(tmp_path / "file"), lambda: b"page")
    assert capsys.readouterr().out == f"note: {tmp_path}/file/report.html cannot be written: Not a directory\n"


def test_begin_overwrite_removes_the_report_of_the_other_job(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(photos, tmp_path / "out")
    output_folder.begin(plan)
    output_folder.finish(plan, do_shards(plan, 0, 1, 2))
    (tmp_path / "out" / files.REPORT).write_text("of the first")
    other = make_plan(photos, tmp_path / "out", settings={"checkpoint_sha256": "beef"})
    output_folder.find_done(other, overwrite=True)
    output_folder.begin(other, overwrite=True)
    assert not (tmp_path / "out" / files.REPORT).exists()
    assert dataclasses.asdict(plan.target) != dataclasses.asdict(other.target)
