"""Build the report page of a training run from values. `html.py` renders it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petseg.models.best import order
from petseg.reports import html, sections
from petseg.reports.html import Bars, Command, Confusion, Curves
from petseg.training.run_folder import format_score


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Content of the report page of a training run."""

    name: str
    """Name of the run."""
    settings: Mapping[str, Any]
    """Every setting of the run, resolved."""
    pairs: Mapping[str, int]
    """Number of pairs in each split."""
    history: Sequence[Mapping[str, Any]]
    """Epochs as in `metrics.jsonl`, at least one."""
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    """Samples by the title of their sheet, as `sections.sample_sheet` takes them."""
    confusion: Sequence[Sequence[int]] | None
    """Pixels by true and predicted class over some validation pairs; None if they were not predicted."""
    confusion_of: str
    """Number and kind of the samples that `confusion` counts, such as "48 validation pairs"."""
    seconds: Mapping[str, float]
    """Seconds of each phase of this start of the job."""
    commands: Sequence[str]
    """Commands to run next."""

    @property
    def best(self) -> Mapping[str, Any]:
        """Best epoch, by the value of --keep-best-by."""
        return min(self.history, key=order)


def training_page(report: TrainingReport) -> bytes:
    """Return the page of a training run."""
    shown = [
        _loss_curves(report),
        _score_curves(report),
        _class_iou_bars(report),
        _class_iou_curves(report),
        _confusion_matrix(report),
        *(sections.sample_sheet(title, samples) for title, samples in report.samples.items()),
        _throughput_curve(report),
        sections.time_chart(report.seconds),
        sections.facts("Settings", report.settings),
        html.versions(),
        _commands(report),
    ]
    return html.page(title=f"Training: {report.name}", summary=_summary(report), sections=shown)


def _summary(report: TrainingReport) -> list[tuple[str, str]]:
    best = report.best
    return [
        ("best epoch", f"{best['epoch']} of {len(report.history)}"),
        ("validation loss", format_score(best["val_loss"])),
        ("mIoU", format_score(best["val_miou"])),
        ("pixel accuracy", format_score(best["val_pixel_accuracy"])),
        *((f"pairs, {split}", f"{count:,}") for split, count in report.pairs.items() if count),
    ]


def _loss_curves(report: TrainingReport) -> Curves:
    lines = {"training": "train_loss", "validation": "val_loss"}
    note = "Mean over the epoch. With augmentation, the training loss is that of the augmented pairs."
    return sections.curves_over_epochs("Loss", "cross-entropy, nats per pixel", report.history, lines, note)


def _score_curves(report: TrainingReport) -> Curves:
    lines = {"pixel accuracy": "val_pixel_accuracy", "mIoU": "val_miou"}
    return sections.curves_over_epochs("Scores on the validation pairs", "score", report.history, lines)


def _class_iou_bars(report: TrainingReport) -> Bars:
    best = report.best
    return sections.score_bars(f"IoU by class, epoch {best['epoch']}", best["val_iou"])


def _class_iou_curves(report: TrainingReport) -> Curves | None:
    """Return the curves by class; None for more than `MATRIX_CLASSES` classes, which nobody can tell apart."""
    classes = list(report.best["val_iou"])
    if len(classes) > sections.MATRIX_CLASSES:
        return None
    epochs = [epoch["val_iou"] for epoch in report.history]
    return sections.curves_over_epochs("IoU by class, by epoch", "IoU", epochs, {name: name for name in classes})


def _confusion_matrix(report: TrainingReport) -> Confusion | None:
    if report.confusion is None:
        return None
    return sections.confusion_matrix(list(report.best["val_iou"]), report.confusion, report.confusion_of)


def _throughput_curve(report: TrainingReport) -> Curves:
    lines, note = {"images/s": "train_images_per_s"}, "Of the training steps, over all workers."
    return sections.curves_over_epochs("Throughput", "images/s", report.history, lines, note)


def _commands(report: TrainingReport) -> Command:
    return Command(title="Repeat this job, and next steps", lines=[*html.rerun("train").lines, *report.commands])
