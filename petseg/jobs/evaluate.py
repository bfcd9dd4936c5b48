"""Score a network on photos and their masks, and draw those on which it is worst.

python jobs/evaluate.py --checkpoint runs/first --images photos --masks masks --output scores
"""

import dataclasses
import io
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import cli, files, storage
from petseg.config.predict import EvaluateConfig
from petseg.data import labels, manifest
from petseg.errors import InputError, JobError
from petseg.progress import Clock, Progress
from petseg.reports import jobs as reports
from petseg.storage import checks
from petseg.training.run_folder import score

if TYPE_CHECKING:
    from petseg.evaluation.evaluator import Counts, Evaluator, View
    from petseg.models.checkpoint import Checkpoint

METRICS_FILE = "metrics.json"
ROWS_FILE = "per_image.parquet"
WORST_FOLDER = "worst"
REPORTED_FAILURES = 100
"""That the report lists, at most."""


def main() -> None:
    """Parse `sys.argv`, score the pairs, and write the scores and the report."""
    config = cli.parse("evaluate", EvaluateConfig, about=__doc__)
    images, masks = storage.absolute(config.images), storage.absolute(config.masks)
    output = storage.absolute(config.output)
    checks.refuse_overlap(output, {"--images": images, "--masks": masks}, [WORST_FOLDER])
    checks.require_writable(output, "--output")
    if METRICS_FILE in storage.list_names(output) and not config.overwrite:
        raise InputError(
            f"--output {output}: it has a {METRICS_FILE} already; choose another folder, or pass --overwrite"
        )
    clock = Clock()
    pairs = manifest.discover(images, masks)
    if config.limit is not None:
        pairs = manifest.sample(pairs, config.limit)

    # torch takes seconds to load: only once the flags and folders are known to be good.
    from petseg.evaluation import evaluator as evaluate
    from petseg.models import checkpoint

    found = checkpoint.find(storage.absolute(config.checkpoint))
    label_map = labels.LabelMap.parse(config.label_map or found.model.label_map, found.model.num_classes)
    evaluator, origin = _load(found, label_map, config)
    clock.lap("listing, imports, the network")
    rows, totals = _score(evaluator, pairs)
    clock.lap("scoring")
    if not totals:
        errors = "; ".join(_first_errors(rows))
        raise InputError(f"--images {images}: none of the {len(rows)} pairs can be used: {errors}")
    per_image = pa.Table.from_pylist(rows, evaluate.ROWS)
    worst, pictures = _draw_worst(evaluator, pairs, per_image)
    metrics = {"pairs": len(rows), "failed": sum(row["error"] is not None for row in rows)}
    metrics |= evaluate.summary(totals, found.model.class_names) | {"worst": worst} | origin
    samples = _draw_samples(evaluator, pairs, per_image)
    clock.lap("drawing")
    page = reports.of_evaluation(metrics=metrics, failures=_failures(rows), samples=samples, seconds=clock.laps)
    _write(output, pictures | {files.REPORT: page, cli.CONFIG_FILE: cli.as_file(config)}, per_image, metrics)
    _report(output, rows, metrics)


def _load(
    found: "Checkpoint", label_map: labels.LabelMap, config: EvaluateConfig
) -> tuple["Evaluator", dict[str, Any]]:
    """The network, ready to be scored, and what `metrics.json` says of where its scores come from."""
    import torch

    from petseg.evaluation.evaluator import Evaluator
    from petseg.inference.predictor import Predictor
    from petseg.models import checkpoint, precision

    if config.use_gpu and not torch.cuda.is_available():
        raise InputError("--use-gpu: torch finds no GPU on this machine; leave it out")
    device = torch.device("cuda" if config.use_gpu else "cpu")
    arithmetic = precision.resolve(config.precision, device)
    weights = checkpoint.read_weights(found)
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)  # of each of the predictor's threads, and of those that count
    predictor = Predictor(
        checkpoint.build_model(found.model, weights, found.location),
        device,
        config.photos_per_pass,
        found.model.image_size,
        arithmetic,
        threads=1 if config.use_gpu else threads,
    )
    resolved = dataclasses.replace(config, label_map=str(label_map), precision=arithmetic)
    sha256 = checkpoint.fingerprint(found, weights)
    origin = {
        "checkpoint": {"location": found.location, "epoch": found.epoch, "sha256": sha256},
        "settings": dataclasses.asdict(resolved),
    }
    return Evaluator(predictor, found.model, label_map, config.max_pixels, threads), origin


def _score(evaluator: "Evaluator", pairs: pa.Table) -> tuple[list[dict[str, Any]], "dict[View, Counts]"]:
    """A row for each pair, and the sums over those that could be decoded."""
    rows, totals = [], {}
    progress = Progress(pairs.num_rows, 0, 0, sys.stdout)
    try:
        for result in evaluator.results(pairs):
            rows.append(result.row)
            for view, counts in result.counts.items():
                totals[view] = totals[view] + counts if view in totals else counts
            progress.add(1, failed=0 if result.counts else 1)
    finally:
        progress.close()
    return rows, totals


def _draw_worst(
    evaluator: "Evaluator", pairs: pa.Table, per_image: pa.Table
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What `metrics.json` says of the worst pairs, and their pictures by name."""
    from petseg.evaluation import evaluator as evaluate

    numbers = evaluate.worst(per_image)
    worst, pictures = [], {}
    rows = per_image.select(["id", "cross_entropy", "miou"]).take(numbers).to_pylist()
    for rank, (row, picture) in enumerate(zip(rows, evaluator.pictures(pairs.take(numbers)), strict=True), 1):
        name = None  # where the photo is gone meanwhile
        if picture is not None:
            # Of a long path the end: a file's name has at most 255 bytes.
            name = f"{WORST_FOLDER}/{rank:02}-{row['id'][-60:].replace('/', '_')}.jpg"
            pictures[name] = picture
        worst.append(row | {"picture": name})
    return worst, pictures


def _draw_samples(evaluator: "Evaluator", pairs: pa.Table, per_image: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """What the report shows of the pairs, by the title of the sheet."""
    sheets = {}
    for title, numbers in reports.choose(per_image["cross_entropy"].to_pylist()).items():
        rows = per_image.select(["id", "cross_entropy", "miou"]).take(numbers).to_pylist()
        drawn = zip(rows, evaluator.pictures(pairs.take(numbers)), strict=True)
        sheets[title] = [row | {"picture": picture} for row, picture in drawn if picture is not None]
    return sheets


def _write(output: str, pictures: dict[str, bytes], per_image: pa.Table, metrics: dict[str, Any]) -> None:
    """`metrics.json` goes first and comes last: where it is, the other files are those that belong to it."""
    buffer = io.BytesIO()
    pq.write_table(per_image, buffer)
    files = pictures | {ROWS_FILE: buffer.getvalue(), METRICS_FILE: json.dumps(metrics, indent=2).encode() + b"\n"}
    folder = storage.join(output, WORST_FOLDER)
    try:
        storage.remove_file(storage.join(output, METRICS_FILE))
        for name in storage.list_names(folder):
            if re.fullmatch(r"\d\d-.+\.jpg", name):  # of a job before, and nothing else
                storage.remove_file(storage.join(folder, name))
        for name, content in files.items():
            storage.write(storage.join(output, name), content, scratch=output)
    except OSError as error:
        reason = error.strerror or error
        raise JobError(
            f"--output {output}: cannot be written: {reason}; mend that, and give the command again"
        ) from error


def _failures(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["id"], row["error"]) for row in rows if row["error"] is not None][:REPORTED_FAILURES]


def _first_errors(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{name}: {reason}" for name, reason in _failures(rows)[:3]]


def _report(output: str, rows: list[dict[str, Any]], metrics: dict[str, Any]) -> None:
    print(f"{metrics['pairs']} pairs, {metrics['failed']} failed: {output}/{METRICS_FILE}")
    first_errors = _first_errors(rows)
    for error in first_errors:
        print(f"  failed: {error}")
    if metrics["failed"] > len(first_errors):
        print(f"  … the rest is in the column `error` of {output}/{ROWS_FILE}")
    for title, of_size in (("the network's size", metrics), ("original size", metrics["original_size"])):
        print(_line(title, of_size))
        if of_size["without_border"] is not None:
            print(_line("  without border", of_size["without_border"]))
    print(f"report: {output}/{files.REPORT}")
    for row in metrics["worst"][:1]:
        print(f"worst: {row['id']}, cross-entropy {score(row['cross_entropy'])}: {output}/{row['picture']}")


def _line(title: str, scores: dict[str, Any]) -> str:
    by_class = " ".join(f"{name} {score(value)}" for name, value in scores["iou"].items())
    return (
        f"{title:20}cross-entropy {score(scores['cross_entropy'])}  accuracy {score(scores['pixel_accuracy'])}  "
        f"mIoU {score(scores['miou'])} ({by_class})  boundary mIoU {score(scores['boundary_miou'])}"
    )


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
