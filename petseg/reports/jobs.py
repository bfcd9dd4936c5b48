"""Build the report page of each job from values. `html.py` renders the pages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from petseg import files, storage
from petseg.config.base import ModelConfig
from petseg.data import visualize
from petseg.inference.plan import Plan, Summary
from petseg.inference.survey import look, survey
from petseg.reports import html
from petseg.reports.html import Bars, Command, Confusion, Curves, Facts, Picture, Section, Sheet, Table
from petseg.training.run_folder import score

SHOWN = 12
"""Maximum number of pictures on each sheet."""

MATRIX_CLASSES = 30
"""Maximum number of classes for which a confusion matrix and curves by class are shown."""

_BY_DOUBT = ("Least sure", "Surest", "Some of the others")
_BY_LOSSES = ("Where it is worst", "Where it is best", "Some of the others")
_CONFIDENCE = "Of a photo: the mean, over its pixels, of the probability of the class that won. High is not right."
_PANELS = "photo, truth, prediction, and in red where they differ"
_BY_LOSS = "By cross-entropy, in nats per pixel: of a class with ten pixels mIoU makes as much as of all others."


def of_training(
    *,
    name: str,
    settings: Mapping[str, Any],
    pairs: Mapping[str, int],
    history: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    confusion: Sequence[Sequence[int]] | None,
    counted: int,
    seconds: Mapping[str, float],
    commands: Sequence[str],
) -> bytes:
    """Return the page of a training run.

    `history` holds the epochs as in `metrics.jsonl`, at least one. `samples` maps the title of each sheet to samples
    with `id`, `cross_entropy`, `miou` and `picture`. `confusion` is the matrix over `counted` pairs. `seconds` holds
    the time of each phase of this start. `commands` are the next commands to run.
    """
    best = min(history, key=lambda epoch: _loss_or_infinity(epoch["val_loss"]))
    classes = list(best["val_iou"])
    losses = {"training": "train_loss", "validation": "val_loss"}
    scores = {"pixel accuracy": "val_pixel_accuracy", "mIoU": "val_miou"}
    note = "The training loss is the mean over the epoch, of pairs changed at random where the recipe does so."
    by_class = [epoch["val_iou"] for epoch in history]
    sections: list[Section] = [
        _over_epochs("Loss", "cross-entropy, nats per pixel", history, losses, note),
        _over_epochs("Scores on the validation pairs", "score", history, scores),
        Bars(title=f"IoU by class, epoch {best['epoch']}", values=_rounded(best["val_iou"])),
    ]
    if len(classes) <= MATRIX_CLASSES:
        sections.append(_over_epochs("IoU by class, by epoch", "IoU", by_class, {name: name for name in classes}))
    if confusion is not None:
        sections += _confusion(classes, confusion, f"{counted} validation pairs")
    sections += [_sheet(title, shown) for title, shown in samples.items()]
    rate = {"images/s": "train_images_per_s"}
    sections += [
        _over_epochs("Throughput", "images/s", history, rate, "Of the training steps, over all workers."),
        where_time_went(seconds),
        facts("Settings", settings),
        html.versions(),
        Command(title="The same again, and on from here", lines=[*html.rerun("train").lines, *commands]),
    ]
    summary = [
        ("best epoch", f"{best['epoch']} of {len(history)}"),
        ("validation loss", score(best["val_loss"])),
        ("mIoU", score(best["val_miou"])),
        ("pixel accuracy", score(best["val_pixel_accuracy"])),
        *((f"pairs, {side}", f"{count:,}") for side, count in pairs.items() if count),
    ]
    return html.page(title=f"Training: {name}", summary=summary, sections=sections)


def of_evaluation(
    *,
    metrics: Mapping[str, Any],
    failures: Sequence[tuple[str, str]],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    seconds: Mapping[str, float],
) -> bytes:
    """Return the page of an evaluation.

    `metrics` is the content of `metrics.json`. `samples` is as in `of_training`. `failures` holds (id, reason) entries.
    """
    scored = metrics["pairs"] - metrics["failed"]
    views = {"the network's size": metrics, "original size": metrics["original_size"]}
    rows = []
    for title, view in views.items():
        for label, scores in ((title, view), (f"{title}, without border", view["without_border"])):
            if scores is not None:
                keys = ("cross_entropy", "pixel_accuracy", "miou", "boundary_miou")
                rows.append([label, *(score(scores[key]) for key in keys)])
    heads = ["at", "cross-entropy", "pixel accuracy", "mIoU", "boundary mIoU"]
    sections: list[Section] = [
        Table(title="Scores", heads=heads, rows=rows, note="Pixels are counted over all pairs, and divided once."),
        Bars(title="IoU by class", values=_rounded(metrics["iou"]), note="At the network's size."),
        Bars(
            title="Boundary IoU by class",
            values=_rounded(metrics["boundary_iou"]),
            note="Of the pixels near a contour.",
        ),
        *_confusion(list(metrics["iou"]), metrics["confusion"], "all pairs"),
        *(_sheet(title, shown) for title, shown in samples.items()),
    ]
    if failures:
        left = metrics["failed"] - len(failures)
        note = f"… and {left:,} more: the column error of per_image.parquet." if left else ""
        sections.append(Table(title="Pairs that failed", heads=["id", "reason"], rows=failures, note=note, text=True))
    where = metrics["checkpoint"]
    sections += [
        where_time_went(seconds),
        facts("Checkpoint", {name: where[name] for name in ("location", "epoch", "sha256")}),
        facts("Settings", metrics["settings"]),
        html.versions(),
        html.rerun("evaluate"),
    ]
    summary = [
        ("pairs", f"{metrics['pairs']:,}"),
        ("failed", f"{metrics['failed']:,}"),
        ("cross-entropy", score(metrics["cross_entropy"])),
        ("mIoU", score(metrics["miou"])),
        ("pixel accuracy", score(metrics["pixel_accuracy"])),
        ("pairs/s", f"{scored / max(1e-9, seconds['scoring']):.0f}"),
    ]
    return html.page(title="Evaluation", summary=summary, sections=sections)


def of_prediction(
    plan: Plan, model: ModelConfig, max_pixels: int, summary: Summary, *, seconds: Mapping[str, float], how: str
) -> bytes:
    """Return the page of a finished prediction, read from its files.

    `seconds` holds the times of the start that finished it, which may have had little left to do. `how` is the status
    line of that start.

    Raises `OSError` if storage does not answer.
    """
    found = survey(plan, model.num_classes)
    doubt = [None if value is None else -value for value in found.rows["confidence"].to_pylist()]
    sheets = [
        _sheet_of_masks(title, look(plan, found.rows.take(indices), max_pixels))
        for title, indices in choose(doubt, _BY_DOUBT).items()
    ]
    of_all = f"{found.shards:,} of {plan.target.num_shards:,} shards, {found.rows.num_rows:,} photos"
    confidence = found.rows["confidence"].drop_null().to_numpy()
    counts, edges = np.histogram(confidence, bins=10, range=(0.0, 1.0))
    total = max(1, int(found.class_pixels.sum()))
    shares = {
        name: round(100 * int(n) / total, 1) for name, n in zip(model.class_names, found.class_pixels, strict=True)
    }
    histogram = {f"{low:.1f} to {low + 0.1:.1f}": int(n) for low, n in zip(edges, counts, strict=False)}
    note = f"Counted in {of_all}."
    sections: list[Section] = [
        Bars(title="Share of the pixels by class", values=shares, unit=" %", note=note),
        Bars(title="Confidence", values=histogram, unit=" photos", note=f"{_CONFIDENCE} {note}"),
        *(sheet for sheet in sheets if sheet.pictures),
    ]
    if found.reasons:
        counted = [[reason, f"{count:,}"] for reason, count in found.reasons.most_common(SHOWN)]
        note = f"{note} All are in the column error of part-*.parquet."
        sections.append(Table(title="Photos that failed", heads=["reason", "photos"], rows=counted, note=note))
    if seconds:
        sections.append(where_time_went(seconds))
    sections += [facts("Settings", plan.description), html.versions(), html.rerun("predict")]
    numbers = [
        ("photos", f"{summary.rows:,}"),
        ("failed", f"{summary.failed:,}"),
        ("mean confidence", score(float(confidence.mean()) if len(confidence) else None)),
        ("the last start", how),
    ]
    return html.page(title="Prediction", summary=numbers, sections=sections)


def keep(folder: str, make: Callable[[], bytes]) -> None:
    """Write the result of `make` as a job's report, and print its location.

    If it cannot be written, prints a note instead of raising, because the job's own work is done.
    """
    location = storage.join(folder, files.REPORT)
    try:
        storage.write(location, make())
    except OSError as error:
        print(f"note: {location} cannot be written: {storage.reason(error)}")
    else:
        print(f"report: {location}")


def facts(title: str, values: Mapping[str, Any]) -> Facts:
    """Return settings as they are written on a command line. Unset ones are a dash."""

    def text(value: Any) -> str:
        if value is None or value in ("", (), []):
            return "–"
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return Facts(title=title, rows=[(name, text(value)) for name, value in values.items()])


def where_time_went(seconds: Mapping[str, float]) -> Bars:
    """Return a bar chart of the seconds spent in each phase."""
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    return Bars(title="Where the time went", values=rounded, unit=" s", note=f"{sum(seconds.values()):.1f} s in all.")


def choose(losses: Sequence[float | None], titles: tuple[str, str, str] = _BY_LOSSES) -> dict[str, list[int]]:
    """Return the indices of the pairs to show, by the title of their sheet.

    The sheets show the pairs with the highest loss (or doubt), those with the lowest, and some spread evenly over the
    others. Each sheet shows at most `SHOWN`. A pair is shown only once, and a pair with an undefined loss is not shown.
    """
    ranked = sorted((-loss, index) for index, loss in enumerate(losses) if loss is not None)
    order = [index for _, index in ranked]
    each = min(SHOWN, -(-len(order) // 3))
    worst, best = order[:each], order[each:][::-1][:each]
    rest = sorted(set(order) - {*worst, *best})
    count = min(SHOWN, len(rest))
    others = [rest[index * len(rest) // count] for index in range(count)]
    return {title: indices for title, indices in zip(titles, (worst, best, others), strict=True) if indices}


def _over_epochs(
    title: str, y_label: str, epochs: Sequence[Mapping[str, Any]], lines: Mapping[str, str], note: str = ""
) -> Curves:
    """Return curves over the epochs. `lines` maps a line's name to the key of its values in each epoch."""
    values = {label: [epoch[key] for epoch in epochs] for label, key in lines.items()}
    numbers = list(range(1, len(epochs) + 1))
    return Curves(title=title, x_label="epoch", y_label=y_label, x=numbers, lines=values, note=note)


def _sheet(title: str, samples: Iterable[Mapping[str, Any]]) -> Sheet:
    shown = []
    for sample in samples:
        caption = f"{sample['id']}: cross-entropy {score(sample['cross_entropy'])}, mIoU {score(sample['miou'])}"
        content = visualize.for_report(sample["picture"])
        shown.append(Picture(content=content, caption=caption, alt=f"{sample['id']}: {_PANELS}"))
    return Sheet(title=title, pictures=shown, note=f"{_PANELS.capitalize()}. {_BY_LOSS}")


def _sheet_of_masks(title: str, samples: Iterable[tuple[Mapping[str, Any], bytes]]) -> Sheet:
    shown = []
    for row, picture in samples:
        alt = f"{row['id']}: photo, and the photo under its mask"
        caption = f"{row['id']}: confidence {score(row['confidence'])}"
        shown.append(Picture(content=visualize.for_report(picture), caption=caption, alt=alt))
    return Sheet(title=title, pictures=shown, note="The photo, and the photo under its mask.")


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]], of_what: str) -> list[Section]:
    """Return the confusion-matrix section; empty for more than `MATRIX_CLASSES` classes, which nobody can read."""
    if len(names) > MATRIX_CLASSES:
        return []
    return [Confusion(title=f"Confusion, {of_what}", names=names, counts=counts)]


def _rounded(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is None else round(value, 3) for name, value in scores.items()}


def _loss_or_infinity(value: float | None) -> float:
    return float("inf") if value is None else value
