"""Build the report page of a finished prediction from its files. `html.py` renders it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from petseg.config.model import ModelConfig
from petseg.data import visualize
from petseg.data.notes import Notes
from petseg.inference.plan import Plan, Summary, settings_of
from petseg.inference.survey import Sample, render_previews, survey
from petseg.reports import html, sections
from petseg.reports.gallery import Gallery, GalleryItem
from petseg.reports.html import Bars, Table
from petseg.training.run_folder import format_score

_CONFIDENCE = "Mean probability of the predicted class over the pixels of a photo. High confidence can be wrong."


@dataclass(frozen=True, kw_only=True)
class PredictionReport:
    """Content of the report page of a prediction, beside what its files hold."""

    plan: Plan
    """Plan of the prediction, whose shards are all written."""
    model: ModelConfig
    """Settings of the network."""
    max_pixels: int
    """Maximum number of pixels of a photo that is read again for its picture."""
    summary: Summary
    """Counts over all shards."""
    skipped: Mapping[str, int]
    """Numbers of files in the folder of the photos that are no images, by reason."""
    seconds: Mapping[str, float]
    """Seconds of each phase of the start that finished the job. That start may have had little left to do."""
    status: str
    """Status line of that start."""


def prediction_page(report: PredictionReport) -> bytes:
    """Return the page of a finished prediction. Raises `OSError` or `UnavailableError` if a file cannot be read."""
    sample = survey(report.plan, report.model.num_classes)
    note = f"Counted in {sample.shards:,} of {report.plan.target.num_shards:,} shards, {sample.rows.num_rows:,} photos."
    shown = [
        sections.class_shares(report.model.class_names, sample.class_pixels, note),
        _confidence_histogram(sample, note),
        _samples_gallery(report, sample),
        _failures_table(sample, note),
        _skipped_table(report.skipped),
        _notes_table(report.summary.notes),
        sections.time_chart(report.seconds) if report.seconds else None,
        sections.facts("Settings", settings_of(report.plan.description) | _counts(report.plan)),
        html.versions(),
        html.rerun("predict"),
    ]
    return html.page(title="Prediction", summary=_summary(report, sample), sections=shown)


def _counts(plan: Plan) -> dict[str, int]:
    return {"images": plan.manifest.num_rows, "generations": len(plan.target.generations)}


def _skipped_table(skipped: Mapping[str, int]) -> Table | None:
    if not skipped:
        return None
    rows = [[reason, f"{count:,}"] for reason, count in sorted(skipped.items(), key=lambda item: -item[1])]
    return Table(
        title="Skipped files", heads=["extension or reason", "files"], rows=rows, note="These files have no row."
    )


def _notes_table(notes: Notes) -> Table | None:
    rows = [[note, f"{count:,}", str(first)] for note, (count, first) in notes.items()]
    return Table(title="Notes", heads=["note", "photos", "such as"], rows=rows, text=True) if rows else None


def _summary(report: PredictionReport, sample: Sample) -> list[tuple[str, str]]:
    confidence = _confidence(sample)
    return [
        ("photos", f"{report.summary.rows:,}"),
        ("failed", f"{report.summary.failed:,}"),
        ("mean confidence", format_score(float(confidence.mean()) if len(confidence) else None)),
        ("last start", report.status),
    ]


def _confidence(sample: Sample) -> np.ndarray:
    """Return the confidence of each photo that did not fail: float (N,)."""
    return sample.rows["confidence"].drop_null().to_numpy()


def _confidence_histogram(sample: Sample, note: str) -> Bars:
    counts, edges = np.histogram(_confidence(sample), bins=10, range=(0.0, 1.0))
    histogram = {f"{low:.1f} to {low + 0.1:.1f}": int(count) for low, count in zip(edges, counts, strict=False)}
    return Bars(title="Confidence", values=histogram, unit=" photos", note=f"{_CONFIDENCE} {note}")


def _samples_gallery(report: PredictionReport, sample: Sample) -> Gallery | None:
    """Return the photos of lowest and highest confidence and some others, the lowest first; None without any."""
    confidence, names = sample.rows["confidence"].to_pylist(), report.model.class_names
    doubt = [None if value is None else -value for value in confidence]
    picked = [index for indices in sections.pick_samples(doubt).values() for index in indices]
    picked.sort(key=lambda index: (confidence[index], index))
    rows = sample.rows.take(pa.array(picked, pa.int64()))
    items = []
    for row, preview, mask in render_previews(report.plan, rows, report.max_pixels):
        photo, masks = visualize.layers_for_report(preview, {"mask": mask})
        present = [name for name, pixels in zip(names, row["class_pixels"], strict=True) if pixels]
        item = GalleryItem(
            id=row["id"], photo=photo, masks=masks, score=row["confidence"], classes=present, link=row["image"]
        )
        items.append(item)
    note = f"At most {sections.SHOWN} each: photos of the lowest confidence, photos of the highest, and others."
    colours = dict(zip(names, report.model.palette, strict=True))
    gallery = Gallery(title="Samples", items=items, score_name="confidence", note=note, colours=colours)
    return gallery if items else None


def _failures_table(sample: Sample, note: str) -> Table | None:
    if not sample.reasons:
        return None
    rows = [[reason, f"{count:,}"] for reason, count in sample.reasons.most_common(sections.SHOWN)]
    note = f"{note} All are in the column error of part-*.parquet."
    return Table(title="Photos that failed", heads=["reason", "photos"], rows=rows, note=note)
