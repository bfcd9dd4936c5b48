"""Score a network on photos and their masks, and draw the pairs where it is worst.

python jobs/evaluate.py --checkpoint runs/first --images photos --masks masks --output scores
"""

import dataclasses
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import cli, files, storage
from petseg.config.evaluate import EvaluateConfig
from petseg.data import labels, manifest, orientation
from petseg.data.classes import read_classes
from petseg.data.notes import Notes, count_notes, note_lines
from petseg.data.tiles import tiling_of
from petseg.errors import InputError
from petseg.progress import Clock, Progress
from petseg.reports import sections
from petseg.reports.evaluate import EvaluationReport, evaluation_page, scores_by_size
from petseg.storage import checks
from petseg.training.run_folder import format_score

if TYPE_CHECKING:
    from petseg.config.model import ModelConfig
    from petseg.evaluation.evaluator import Evaluator
    from petseg.evaluation.scores import Counts, View
    from petseg.models.checkpoint import Checkpoint

REPORTED_FAILURES = 100
"""Maximum number of failed pairs that the report lists."""


def main() -> None:
    """Parse `sys.argv`, score the pairs, and write the scores and the report."""
    config = cli.parse("evaluate", EvaluateConfig, about=__doc__)
    images, masks = storage.absolute(config.images), storage.absolute(config.masks)
    output = storage.absolute(config.output)
    checks.require_no_overlap(output, {"--images": images, "--masks": masks}, [files.WORST_FOLDER])
    checks.require_writable(output, "--output")
    if files.METRICS in storage.list_names(output) and not config.overwrite:
        raise InputError(
            f"--output {output}: it already has a {files.METRICS}; choose another folder, or pass --overwrite"
        )
    clock = Clock()
    pairs = manifest.discover(images, masks, suffixes=(config.image_suffix, config.mask_suffix))
    if config.limit is not None:
        pairs = manifest.sample(pairs, config.limit)

    # Importing torch takes seconds. Check the flags and folders first.
    from petseg.evaluation.evaluator import ROWS
    from petseg.evaluation.scores import summarise
    from petseg.models import checkpoint

    trained = checkpoint.find(storage.absolute(config.checkpoint))
    _require_excludable(config.exclude_class, trained.model.class_names)
    label_map = _label_map(config.label_map, masks, trained.model)
    evaluator, origin = _load(trained, label_map, config)
    clock.lap("listing, imports, the network")
    rows, totals, notes = _score(evaluator, pairs)
    clock.lap("scoring")
    if not totals:
        errors = "; ".join(_first_errors(rows))
        raise InputError(f"--images {images}: none of the {len(rows)} pairs can be used: {errors}; fix or replace them")
    per_image = pa.Table.from_pylist(rows, ROWS)
    worst, pictures = _draw_worst(evaluator, pairs, per_image)
    metrics = {"pairs": len(rows), "failed": sum(row["error"] is not None for row in rows)}
    metrics |= summarise(totals, trained.model.class_names) | {"worst": worst} | origin
    samples = _draw_samples(evaluator, pairs, per_image)
    clock.lap("drawing")
    report = EvaluationReport(metrics=metrics, failures=_failures(rows), samples=samples, seconds=clock.laps)
    pages = {files.REPORT: evaluation_page(report), files.CONFIG: cli.as_file(config)}
    _write(output, pictures | pages, per_image, metrics)
    _print_summary(output, rows, metrics)
    for line in note_lines(notes):
        print(f"  note: {line}")


def _require_excludable(name: str, class_names: tuple[str, ...]) -> None:
    if name and name not in class_names:
        raise InputError(f"--exclude-class {name}: no such class; give one of {', '.join(class_names)}")
    if name and len(class_names) == 2:
        raise InputError(f"--exclude-class {name}: the network has only two classes; leave it out")


def _label_map(text: str, masks: str, model: "ModelConfig") -> labels.LabelMap:
    """Return the map of --label-map, else that of the masks' classes.json if it has the network's classes, else the map
    the network was trained with.
    """
    described = None if text else read_classes(masks)
    if described is not None and described.classes == model.class_names:
        return labels.LabelMap.parse(described.label_map, model.num_classes, model.class_names, described.ignore_label)
    if described is not None:
        location = storage.join(masks, files.CLASSES)
        print(
            f"note: {location} is not used: its classes are {', '.join(described.classes)}, not the network's; the raw "
            "values are mapped as in training"
        )
    # The masks need not have every class, such as those of a set with few classes.
    return labels.LabelMap.parse(text or model.label_map, model.num_classes, model.class_names, require_all=False)


def _load(
    trained: "Checkpoint", label_map: labels.LabelMap, config: EvaluateConfig
) -> tuple["Evaluator", dict[str, Any]]:
    """Return the evaluator of the network, and the entries of `metrics.json` on the checkpoint and the settings."""
    import torch

    from petseg.evaluation.evaluator import Evaluator
    from petseg.inference.predictor import Predictor
    from petseg.models import checkpoint, precision

    if config.use_gpu and not torch.cuda.is_available():
        raise InputError("--use-gpu: torch finds no GPU on this machine; leave it out")
    device = torch.device("cuda" if config.use_gpu else "cpu")
    dtype = precision.resolve(config.precision, device)
    weights = checkpoint.read_weights(trained)
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)  # of torch's own: the predictor and the scorer start theirs
    predictor = Predictor(
        checkpoint.build_model(trained.model, weights, trained.location),
        device,
        config.photos_per_pass,
        trained.model.image_size,
        dtype,
        resize=trained.model.resize,
        tiling=tiling_of(trained.model),
        threads=1 if config.use_gpu else threads,
    )
    resolved = dataclasses.replace(config, label_map=str(label_map), precision=dtype)
    sha256 = checkpoint.fingerprint(trained, weights)
    origin = {
        "checkpoint": {"location": trained.location, "epoch": trained.epoch, "sha256": sha256},
        "settings": dataclasses.asdict(resolved),
    }
    upright = orientation.given(config.masks_upright)
    evaluator = Evaluator(
        predictor, trained.model, label_map, config.max_pixels, threads, config.exclude_class, upright
    )
    return evaluator, origin


def _score(evaluator: "Evaluator", pairs: pa.Table) -> tuple[list[dict[str, Any]], "dict[View, Counts]", Notes]:
    """Return a row for each pair, the sums over all pairs that could be decoded, and the notes on the photos.

    Pairs with an unclear mask come last, once the others show how those were drawn. Raises `InputError` if
    --masks-upright is needed.
    """
    rows, totals, notes = {}, {}, {}
    drawn, undecided = Counter(), []
    progress = Progress(pairs.num_rows, 0, 0, sys.stdout)

    def score(indices: Sequence[int]) -> None:
        for index, result in zip(indices, evaluator.results(pairs.take(pa.array(indices))), strict=True):
            drawn[result.drawn] += 1
            if result.drawn == "unclear" and not result.counts:
                undecided.append(index)
                continue
            rows[index], notes[index] = result.row, result.notes
            for view, counts in result.counts.items():
                totals[view] = totals[view] + counts if view in totals else counts
            progress.add(1, failed=0 if result.counts else 1)

    try:
        score(range(pairs.num_rows))
        if undecided:
            evaluator.masks_upright = orientation.decide(drawn, pairs["id"][undecided[0]].as_py())
            score(list(undecided))
    finally:
        progress.close()
    order = sorted(rows)
    return [rows[index] for index in order], totals, count_notes(pairs["id"].to_pylist(), map(notes.get, order))


def _draw_worst(
    evaluator: "Evaluator", pairs: pa.Table, per_image: pa.Table
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return the entries of `metrics.json` on the worst pairs, and their pictures by file name."""
    from petseg.evaluation.evaluator import worst_pairs

    numbers = worst_pairs(per_image)
    worst, pictures = [], {}
    rows = per_image.select(["id", "cross_entropy", "miou"]).take(numbers).to_pylist()
    for rank, (row, picture) in enumerate(zip(rows, evaluator.pictures(pairs.take(numbers)), strict=True), 1):
        name = None  # if the photo was deleted meanwhile
        if picture is not None:
            # Keep the end of a long path: a file name has at most 255 bytes.
            name = f"{files.WORST_FOLDER}/{rank:02}-{row['id'][-60:].replace('/', '_')}.jpg"
            pictures[name] = picture
        worst.append(row | {"picture": name})
    return worst, pictures


def _draw_samples(evaluator: "Evaluator", pairs: pa.Table, per_image: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Return the pairs that the report shows, by the title of their sheet."""
    sheets = {}
    for title, numbers in sections.pick_samples(per_image["cross_entropy"].to_pylist()).items():
        rows = per_image.select(["id", "cross_entropy", "miou"]).take(numbers).to_pylist()
        drawn = zip(rows, evaluator.pictures(pairs.take(numbers)), strict=True)
        sheets[title] = [row | {"picture": picture} for row, picture in drawn if picture is not None]
    return sheets


def _write(output: str, pictures: dict[str, bytes], per_image: pa.Table, metrics: dict[str, Any]) -> None:
    """Write all files. Delete `metrics.json` first and write it last: if it exists, all other files belong to it."""
    buffer = io.BytesIO()
    pq.write_table(per_image, buffer)
    contents = pictures | {
        files.SCORES: buffer.getvalue(),
        files.METRICS: json.dumps(metrics, indent=2).encode() + b"\n",
    }
    folder = storage.join(output, files.WORST_FOLDER)
    with checks.translate_write_errors(output, remedy="fix this and run the same command again"):
        storage.remove_file(storage.join(output, files.METRICS))
        for name in storage.list_names(folder):
            if re.fullmatch(r"\d\d-.+\.jpg", name):  # written by an earlier job; keep other files
                storage.remove_file(storage.join(folder, name))
        for name, content in contents.items():
            storage.write(storage.join(output, name), content, scratch=output)


def _failures(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (id, error) of the first `REPORTED_FAILURES` failed pairs."""
    return [(row["id"], row["error"]) for row in rows if row["error"] is not None][:REPORTED_FAILURES]


def _first_errors(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in _failures(rows)[:3]]


def _print_summary(output: str, rows: list[dict[str, Any]], metrics: dict[str, Any]) -> None:
    print(f"{metrics['pairs']} pairs, {metrics['failed']} failed: {output}/{files.METRICS}")
    first_errors = _first_errors(rows)
    for error in first_errors:
        print(f"  failed: {error}")
    if metrics["failed"] > len(first_errors):
        print(f"  … for all errors see the column `error` of {output}/{files.SCORES}")
    for title, of_size in scores_by_size(metrics).items():
        print(_line(title, of_size))
        if of_size["excluding_class"] is not None:
            print(_line(f"  without {metrics['settings']['exclude_class']}", of_size["excluding_class"]))
    print(f"report: {output}/{files.REPORT}")
    for row in metrics["worst"][:1]:
        picture = f"{output}/{row['picture']}" if row["picture"] else "no picture: its files can no longer be read"
        print(f"worst: {row['id']}, cross-entropy {format_score(row['cross_entropy'])}: {picture}")


def _line(title: str, scores: Mapping[str, Any]) -> str:
    loss, accuracy, miou, boundary = (
        format_score(scores[key]) for key in ("cross_entropy", "pixel_accuracy", "miou", "boundary_miou")
    )
    by_class = " ".join(f"{name} {format_score(value)}" for name, value in scores["iou"].items())
    return f"{title:20}cross-entropy {loss}  accuracy {accuracy}  mIoU {miou} ({by_class})  boundary mIoU {boundary}"


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
