"""The training report: each section, from hand-made values."""

from typing import Any

import pytest

from petseg.reports import sections, train
from petseg.reports.train import TrainingReport


def epoch(number: int, loss: float | None, pet: float | None = 0.5) -> dict[str, Any]:
    scores = {"val_loss": loss, "val_pixel_accuracy": 0.9, "val_miou": 0.45, "val_iou": {"pet": pet, "rest": 0.8}}
    return {"epoch": number, "train_loss": 1 / number, "train_images_per_s": 60.0 + number, **scores}


def report(**changes: Any) -> TrainingReport:
    values: dict[str, Any] = {
        "name": "first",
        "settings": {},
        "pairs": {"train": 1319, "val": 330, "test": 0},
        "history": [epoch(1, None), epoch(2, 0.4, pet=0.12345), epoch(3, 0.5, pet=None)],
        "samples": {},
        "confusion": [[8, 2], [1, 9]],
        "confusion_of": "20 validation pairs",
        "seconds": {},
        "commands": ["next"],
    }
    return TrainingReport(**(values | changes))


def test_summary_best_epoch_has_the_lowest_loss() -> None:
    assert train._summary(report()) == [
        ("best epoch", "2 of 3"),
        ("validation loss", "0.400"),
        ("mIoU", "0.450"),
        ("pixel accuracy", "0.900"),
        ("pairs, train", "1,319"),
        ("pairs, val", "330"),
    ]


def test_curves_each_epoch_has_its_value() -> None:
    assert train._loss_curves(report()).lines == {"training": [1, 1 / 2, 1 / 3], "validation": [None, 0.4, 0.5]}
    assert train._score_curves(report()).lines == {"pixel accuracy": [0.9] * 3, "mIoU": [0.45] * 3}
    assert train._throughput_curve(report()).lines == {"images/s": [61.0, 62.0, 63.0]}
    assert train._loss_curves(report()).x == [1, 2, 3]


def test_class_iou_bars_show_the_best_epoch() -> None:
    bars = train._class_iou_bars(report())
    assert (bars.title, bars.values) == ("IoU by class, epoch 2", {"pet": 0.123, "rest": 0.8})


def test_class_iou_curves_and_confusion_too_many_classes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    curves, matrix = train._class_iou_curves(report()), train._confusion_matrix(report())
    assert curves is not None and curves.lines == {"pet": [0.5, 0.12345, None], "rest": [0.8] * 3}
    assert matrix is not None and (matrix.title, matrix.names) == ("Confusion, 20 validation pairs", ["pet", "rest"])
    assert train._confusion_matrix(report(confusion=None)) is None
    monkeypatch.setattr(sections, "MATRIX_CLASSES", 1)
    assert train._class_iou_curves(report()) is None and train._confusion_matrix(report()) is None


def test_commands_next_command_is_last() -> None:
    assert train._commands(report()).lines[-1] == "next"


def test_class_shares_no_pixels_are_zero_percent() -> None:
    assert sections.class_shares(["a", "b"], [0, 0], "").values == {"a": 0.0, "b": 0.0}
    assert sections.class_shares(["a", "b"], [1, 2], "").values == {"a": 33.3, "b": 66.7}
