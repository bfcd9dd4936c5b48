"""Build the report page of an evaluation from values. `html.py` renders it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from petseg import files
from petseg.reports import html, sections
from petseg.reports.html import Facts, Table
from petseg.training.run_folder import format_score

if TYPE_CHECKING:
    from petseg.evaluation.shards import Scorer


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Content of the report page of an evaluation."""

    metrics: Mapping[str, Any]
    """Content of `metrics.json`."""
    failures: Sequence[tuple[str, str]]
    """(id, reason) of the first failed pairs."""
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    """Samples by the title of their sheet, as `sections.sample_sheet` takes them."""
    seconds: Mapping[str, float]
    """Seconds of each phase of the job. The phase "scoring" gives the pairs per second."""


def evaluation_page(report: EvaluationReport) -> bytes:
    """Return the page of an evaluation."""
    metrics = report.metrics
    shown = [
        _scores_table(metrics),
        sections.score_bars("IoU by class", metrics["iou"], f"At {next(iter(scores_by_size(metrics)))}."),
        sections.score_bars("Boundary IoU by class", metrics["boundary_iou"], "Of the pixels near a contour."),
        sections.confusion_matrix(list(metrics["iou"]), metrics["confusion"], "all pairs"),
        *(sections.sample_sheet(title, samples) for title, samples in report.samples.items()),
        _failures_table(report),
        sections.time_chart(report.seconds),
        _subject_facts(metrics),
        sections.facts("Settings", metrics["settings"]),
        html.versions(),
        html.rerun("evaluate"),
    ]
    return html.page(title="Evaluation", summary=_summary(report), sections=shown)


def scores_by_size(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the scores of `metrics.json` by the size at which they were counted. A network of crops has one size."""
    at_original = {"original size": metrics["original_size"]}
    return at_original if metrics["size"] == "original" else {"the network's size": metrics} | at_original


def _summary(report: EvaluationReport) -> list[tuple[str, str]]:
    metrics = report.metrics
    scored = metrics["pairs"] - metrics["failed"]
    return [
        ("pairs", f"{metrics['pairs']:,}"),
        ("failed", f"{metrics['failed']:,}"),
        ("cross-entropy", format_score(metrics["cross_entropy"])),
        ("mIoU", format_score(metrics["miou"])),
        ("pixel accuracy", format_score(metrics["pixel_accuracy"])),
        ("pairs/s", f"{scored / max(1e-9, report.seconds['scoring']):.0f}"),
    ]


def _scores_table(metrics: Mapping[str, Any]) -> Table:
    """Return the scores at each size, with all classes and, if --exclude-class is given, without that class."""
    keys = ("cross_entropy", "pixel_accuracy", "miou", "boundary_miou")
    rows = []
    for size, scores in scores_by_size(metrics).items():
        excluded = f"{size}, without {metrics['settings']['exclude_class']}"
        for label, view in ((size, scores), (excluded, scores["excluding_class"])):
            if view is not None:
                rows.append([label, *(format_score(view[key]) for key in keys)])
    heads = ["at", "cross-entropy", "pixel accuracy", "mIoU", "boundary mIoU"]
    return Table(title="Scores", heads=heads, rows=rows, note="Pixels are counted over all pairs, and divided once.")


def _failures_table(report: EvaluationReport) -> Table | None:
    if not report.failures:
        return None
    left = report.metrics["failed"] - len(report.failures)
    note = f"… and {left:,} more: the column error of per_image.parquet." if left else ""
    return Table(title="Pairs that failed", heads=["id", "reason"], rows=report.failures, note=note, text=True)


def _subject_facts(metrics: Mapping[str, Any]) -> Facts:
    if "checkpoint" not in metrics:
        return sections.facts("Masks", {"predicted": metrics["predicted"]})
    return sections.facts("Checkpoint", {name: metrics["checkpoint"][name] for name in ("location", "epoch", "sha256")})


def draw_worst(scorer: "Scorer", pairs: pa.Table, per_image: pa.Table) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return the entries of `metrics.json` on the worst pairs, and their pictures by file name."""
    from petseg.evaluation.evaluator import worst_pairs  # here, because it imports torch

    numbers = worst_pairs(per_image)
    worst, pictures = [], {}
    rows = per_image.select(["id", "cross_entropy", "miou"]).take(numbers).to_pylist()
    for rank, (row, picture) in enumerate(zip(rows, scorer.pictures(pairs.take(numbers)), strict=True), 1):
        name = None  # if the photo was deleted meanwhile
        if picture is not None:
            # Keep the end of a long path: a file name has at most 255 bytes.
            name = f"{files.WORST_FOLDER}/{rank:02}-{row['id'][-60:].replace('/', '_')}.jpg"
            pictures[name] = picture
        worst.append(row | {"picture": name})
    return worst, pictures


def draw_samples(scorer: "Scorer", pairs: pa.Table, per_image: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Return the pairs that the report shows, by the title of their sheet."""
    from petseg.evaluation.evaluator import badness

    sheets = {}
    for title, numbers in sections.pick_samples(badness(per_image)).items():
        rows = per_image.select(["id", "cross_entropy", "miou"]).take(numbers).to_pylist()
        drawn = zip(rows, scorer.pictures(pairs.take(numbers)), strict=True)
        sheets[title] = [row | {"picture": picture} for row, picture in drawn if picture is not None]
    return sheets
