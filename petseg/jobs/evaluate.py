"""Score a network, or masks that were predicted before, on photos and their masks, and draw the worst pairs.

python jobs/evaluate.py --checkpoint runs/first --images photos --masks masks --output scores
python jobs/evaluate.py --from predicted --images photos --masks masks --output scores      without a network
"""

import dataclasses
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from petseg import cli, files, storage
from petseg.cli.job_status import report_status
from petseg.cli.json_log import set_log_format
from petseg.config.evaluate import EvaluateConfig
from petseg.data import manifest, orientation
from petseg.data.notes import add_notes, note_lines
from petseg.data.photo_table import place_to_share
from petseg.errors import InputError
from petseg.progress import Clock
from petseg.reports.evaluate import EvaluationReport, draw_samples, draw_worst, evaluation_page, scores_by_size
from petseg.status import JobStatus
from petseg.storage import checks
from petseg.storage.hold import hold
from petseg.training.run_folder import format_score

if TYPE_CHECKING:
    from petseg.evaluation.shards import Scorer, Summary, Target, Work
    from petseg.evaluation.subjects import Subject

_FORMAT = 1
"""Version of the scores. Increase it when the same pairs and settings would give others."""

REPORTED_FAILURES = 100
"""Maximum number of failed pairs that the report lists."""

_PRINTED_FAILURES = 3


@cli.on_interrupt(cli.CONTINUES)
def main() -> None:
    """Parse `sys.argv`, score the pairs, and write the scores and the report."""
    config = cli.parse("evaluate", EvaluateConfig, about=__doc__)
    set_log_format(config.log_format, "evaluate")
    images, masks = storage.absolute(config.images), storage.absolute(config.masks)
    output = storage.absolute(config.output)
    sources = {"--images": images, "--masks": masks}
    if config.from_:
        sources["--from"] = storage.absolute(config.from_)
    checks.require_no_overlap(output, sources, [files.WORST_FOLDER])
    checks.require_writable(output, "--output")
    clock = Clock()
    pairs = manifest.discover(images, masks, suffixes=(config.image_suffix, config.mask_suffix), versions=True)
    if config.limit is not None:
        pairs = manifest.sample(pairs, config.limit)

    # Importing torch takes seconds. Check the flags and folders first.
    from petseg.evaluation import shards, subjects

    if config.from_:
        subject = subjects.find_masks(config, pairs)
    else:
        subject = subjects.find_network(config, pairs, has_own_gpu=not _is_on_ray(config))
    target = shards.make_target(output, pairs.num_rows, _plan(config, subject))
    with hold(output, "--output") as is_held, report_status("evaluate", output, is_held) as status:
        finished = _read_finished(target, config.overwrite)
        if finished is not None:
            status.count(finished["pairs"], finished["pairs"], finished["failed"], "pairs")
            print("already finished; nothing to do")
            _print_summary(output, finished)
        else:
            _evaluate(config, subject, target, clock, status)


def _plan(config: EvaluateConfig, subject: "Subject") -> dict[str, Any]:
    """Return everything that determines the scores, as JSON values."""
    versions = (subject.pairs[name].to_numpy().tobytes() for name in ("image_version", "mask_version"))
    settings = dataclasses.asdict(config)
    named = ("exclude_class", "masks_upright", "max_pixels", "precision", "use_gpu")
    return {
        "format": _FORMAT,
        "pairs_sha256": manifest.digest(subject.pairs, ("id", "image", "mask")),
        "files_sha256": hashlib.sha256(b"".join(versions)).hexdigest(),
        "scored": subject.versions,
        "label_map": str(subject.label_map),
        "batch_size": config.photos_per_pass,
        **{name: settings[name] for name in named},
    }


def _read_finished(target: "Target", overwrite: bool) -> dict[str, Any] | None:
    """Return the content of `metrics.json` if this evaluation is finished, else None.

    Raises `InputError` if another evaluation is finished there, unless `overwrite` is set.
    """
    if files.METRICS not in storage.list_names(target.output):
        return None
    try:
        metrics = storage.read_json(storage.join(target.output, files.METRICS))
    except InputError:  # not of an evaluation
        metrics = None
    if isinstance(metrics, dict) and metrics.get("plan_sha256") == target.fingerprint:
        return metrics
    if not overwrite:
        raise InputError(
            f"--output {target.output}: it already has a {files.METRICS} of other files or settings; choose another "
            "folder, or pass --overwrite"
        )
    return None


def _evaluate(config: EvaluateConfig, subject: "Subject", target: "Target", clock: Clock, status: JobStatus) -> None:
    """Score the pairs, and write the scores and the report."""
    from petseg.evaluation import shards
    from petseg.evaluation.scores import summarise

    # In a cluster, the driver's machine only draws. It may have no GPU.
    settings = subject.settings.without_gpu() if _is_on_ray(config) else subject.settings
    scorer = settings.build(len(os.sched_getaffinity(0)))
    done = shards.find_done(target)
    clock.lap("listing, imports, the network")
    _score(config, subject, target, done, scorer, status)
    clock.lap("scoring")
    status.enter("drawing")
    totals, failures = shards.total(done, scorer.views), _failures(done)
    if not totals:
        storage.remove_folder(storage.join(target.output, files.EVALUATION_SHARDS))
        raise InputError(
            f"--images {storage.absolute(config.images)}: none of the {subject.pairs.num_rows} pairs can be used: "
            f"{'; '.join(map(': '.join, failures[:3]))}; fix or replace them"
        )
    with checks.translate_write_errors(target.output):
        per_image = shards.read_rows(target, range(target.num_shards))
    worst, pictures = draw_worst(scorer, subject.pairs, per_image)
    metrics = {"pairs": per_image.num_rows, "failed": sum(summary.failed for summary in done.values())}
    metrics |= summarise(totals, subject.class_names) | {"worst": worst} | subject.origin
    resolved = dataclasses.replace(config, label_map=str(subject.label_map))
    metrics |= {"settings": dataclasses.asdict(resolved), "plan_sha256": target.fingerprint}
    samples = draw_samples(scorer, subject.pairs, per_image)
    clock.lap("drawing")
    report = EvaluationReport(metrics=metrics, failures=failures, samples=samples, seconds=clock.laps)
    pages = {files.REPORT: evaluation_page(report), files.CONFIG: cli.as_file(config)}
    _write(target.output, pictures | pages, per_image, metrics)
    _print_summary(target.output, metrics)
    for row_id, reason in failures[:_PRINTED_FAILURES]:
        print(f"  failed: {row_id}: {reason}")
    if metrics["failed"] > _PRINTED_FAILURES:
        print(f"  … for all errors see the column `error` of {target.output}/{files.SCORES}")
    for line in note_lines(add_notes(done[shard].notes for shard in sorted(done))):
        print(f"  note: {line}")


def _is_on_ray(config: EvaluateConfig) -> bool:
    """Return True if the job needs Ray: it has several processes, or runs in a cluster. Ray takes seconds to start."""
    return config.num_workers > 1 or bool(os.environ.get("RAY_ADDRESS"))


def _score(
    config: EvaluateConfig,
    subject: "Subject",
    target: "Target",
    done: "dict[int, Summary]",
    scorer: "Scorer",
    status: JobStatus,
) -> None:
    """Score the pairs that are not in `done`, and add them to it.

    Pairs with an unclear mask come last, once the others show how those were drawn. Raises `InputError` if
    --masks-upright is needed.
    """
    from petseg.evaluation.shards import Work

    storage.remove_leftovers(storage.join(target.output, files.EVALUATION_SHARDS))
    missing = [shard for shard in range(target.num_shards) if shard not in done]
    if _is_on_ray(config) and (missing or any(summary.unclear for summary in done.values())):
        _start_ray(config, subject, status)
    upright = orientation.given(config.masks_upright)
    if missing:
        _run(config, subject, Work(subject.pairs, target, upright, missing), done, scorer, status)
    unclear = {shard: summary for shard, summary in sorted(done.items()) if summary.unclear}
    if unclear:
        shard, summary = next(iter(unclear.items()))
        example = subject.pairs["id"][shard * target.shard_size + summary.unclear[0]].as_py()
        drawn = sum((Counter(summary.drawn) for summary in done.values()), Counter())
        upright = orientation.decide(drawn, example)
        _run(config, subject, Work(subject.pairs, target, upright, [], unclear), done, scorer, status)


def _start_ray(config: EvaluateConfig, subject: "Subject", status: JobStatus) -> None:
    """Join Ray, and wait until it has room for the workers."""
    from petseg.cluster import connect, metrics, resources

    status.enter("starting Ray")
    connect.connect(debug=cli.is_debugging())
    metrics.export_status(status)
    columns = {"--images": "image", "--masks": "mask"} | ({"--from": "predicted"} if config.from_ else {})
    given = {"--images": config.images, "--masks": config.masks, "--from": config.from_}
    locations = {
        flag: place_to_share(storage.absolute(given[flag]), subject.pairs[column]) for flag, column in columns.items()
    }
    locations["--output"] = storage.absolute(config.output)
    resources.require_shared(locations)
    bundle = ({"GPU": 1} if config.use_gpu else {}) | {"CPU": 1}
    resources.require(bundle, config.num_workers, "--num-workers", config.wait_min * 60, status.wait)
    resources.require_shared(locations)  # again, because nodes may have joined while waiting


def _run(
    config: EvaluateConfig,
    subject: "Subject",
    work: "Work",
    done: "dict[int, Summary]",
    scorer: "Scorer",
    status: JobStatus,
) -> None:
    """Score the shards of `work`, in this process or on Ray, and put their summaries into `done`."""
    from petseg.pipelines.shards import run_shards

    if _is_on_ray(config):
        from petseg.pipelines.evaluate import IF_OUT_OF_MEMORY, score_shards

        scored = score_shards(work, subject.settings, config.num_workers, config.use_gpu)
        if_out_of_memory = IF_OUT_OF_MEMORY
    else:
        if_out_of_memory = ""
        scored = ((shard, work.score(scorer, shard)) for shard in work.shards)

    def count(shard: int, summary: "Summary") -> tuple[int, int]:
        return work.num_rows(shard), summary.failed - (done[shard].failed if shard in done else 0)

    status.enter("scoring")
    total = subject.pairs.num_rows
    before = total - sum(map(work.num_rows, work.shards)), sum(summary.failed for summary in done.values())
    print(run_shards(scored, done, count, total, before, "pairs", status, if_out_of_memory))


def _write(output: str, pictures: dict[str, bytes], per_image: pa.Table, metrics: dict[str, Any]) -> None:
    """Write all files. Delete `metrics.json` first and write it last: if it exists, all other files belong to it."""
    buffer = io.BytesIO()
    pq.write_table(per_image, buffer)
    contents = pictures | {
        files.SCORES: buffer.getvalue(),
        files.METRICS: json.dumps(metrics, indent=2).encode() + b"\n",
    }
    folder = storage.join(output, files.WORST_FOLDER)
    with checks.translate_write_errors(output):
        storage.remove_file(storage.join(output, files.METRICS))
        for name in storage.list_names(folder):
            if re.fullmatch(r"\d\d-.+\.jpg", name):  # written by an earlier job; keep other files
                storage.remove_file(storage.join(folder, name))
        for name, content in contents.items():
            storage.write(storage.join(output, name), content, scratch=output)
        storage.remove_folder(storage.join(output, files.EVALUATION_SHARDS))


def _failures(done: "Mapping[int, Summary]") -> list[tuple[str, str]]:
    """Return (id, reason) of the first failed pairs, at most `REPORTED_FAILURES`."""
    failures = [(row_id, reason) for shard in sorted(done) for row_id, reason in done[shard].first_errors]
    return failures[:REPORTED_FAILURES]


def _print_summary(output: str, metrics: Mapping[str, Any]) -> None:
    print(f"{metrics['pairs']} pairs, {metrics['failed']} failed: {output}/{files.METRICS}")
    for title, of_size in scores_by_size(metrics).items():
        print(_line(title, of_size))
        if of_size["excluding_class"] is not None:
            print(_line(f"  without {metrics['settings']['exclude_class']}", of_size["excluding_class"]))
    print(f"report: {output}/{files.REPORT}")
    for row in metrics["worst"][:1]:
        picture = f"{output}/{row['picture']}" if row["picture"] else "no picture: its files can no longer be read"
        score = "mIoU" if row["cross_entropy"] is None else "cross-entropy"
        print(f"worst: {row['id']}, {score} {format_score(row[score.replace('-', '_').lower()])}: {picture}")


def _line(title: str, scores: Mapping[str, Any]) -> str:
    loss, accuracy, miou, boundary = (
        format_score(scores[key]) for key in ("cross_entropy", "pixel_accuracy", "miou", "boundary_miou")
    )
    by_class = " ".join(f"{name} {format_score(value)}" for name, value in scores["iou"].items())
    return f"{title:20}cross-entropy {loss}  accuracy {accuracy}  mIoU {miou} ({by_class})  boundary mIoU {boundary}"


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
