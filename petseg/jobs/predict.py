"""Write a mask for every photo of a folder, as Parquet shards and PNG files.

python jobs/predict.py --checkpoint runs/first --images photos --output masks
ray job submit --working-dir . -- python jobs/predict.py …
"""

from collections.abc import Iterator
from functools import partial
from typing import NoReturn

import pyarrow as pa

from petseg import cli, files, storage
from petseg.cli.job_status import report_status
from petseg.cli.json_log import set_log_format
from petseg.config.model import ModelConfig
from petseg.config.predict import PredictConfig
from petseg.data import listing, manifest
from petseg.data.notes import note_lines
from petseg.data.photo_table import place_to_share
from petseg.data.tiles import tiling_of
from petseg.errors import JobError
from petseg.inference import existing, output_folder
from petseg.inference.existing import Start
from petseg.inference.plan import Outputs, Plan, Summary, Work, make_plan
from petseg.progress import Clock
from petseg.reports.predict import PredictionReport, prediction_page
from petseg.reports.sections import save_report
from petseg.status import JobStatus
from petseg.storage import checks
from petseg.storage.hold import hold


@cli.on_interrupt(cli.CONTINUES)
def main() -> None:
    """Parse `sys.argv`, predict the missing shards, and write the report."""
    config = cli.parse("predict", PredictConfig, about=__doc__)
    set_log_format(config.log_format, "predict")
    images, output = storage.absolute(config.images), storage.absolute(config.output)
    checks.require_no_overlap(output, {"--images": images}, (files.MASK_FOLDER, files.OVERLAY_FOLDER))
    checks.require_writable(output, "--output")
    clock = Clock()
    skipped: listing.Skipped = {}
    photos = manifest.discover(images, skipped=skipped)
    if config.limit is not None:
        photos = manifest.sample(photos, config.limit)

    # Importing torch takes seconds, so invalid flags and folders are reported first.
    from petseg.models import checkpoint

    trained = checkpoint.find(storage.absolute(config.checkpoint))
    weights = checkpoint.read_weights(trained)
    plan = _plan(config, trained.model, photos, output, checkpoint.fingerprint(trained, weights))
    with hold(output, "--output") as is_held, report_status("predict", output, is_held) as status:
        _predict(config, plan, trained.model, weights, skipped, clock, status)


def _predict(
    config: PredictConfig,
    plan: Plan,
    model: ModelConfig,
    weights: bytes,
    skipped: listing.Skipped,
    clock: Clock,
    status: JobStatus,
) -> None:
    """Predict the missing shards, and finish the output."""
    output = plan.target.output
    start = existing.find_start(plan, append=config.append)
    plan = start.plan
    make_report = partial(
        PredictionReport, plan=plan, model=model, max_pixels=config.max_pixels, skipped=skipped["--images"]
    )
    done = output_folder.find_done(plan, overwrite=config.overwrite)
    again = output_folder.find_again(start, done, retry_errors=config.retry_errors)
    work = Work(plan, [shard for shard in range(plan.target.num_shards) if shard not in done], again)
    summary = output_folder.total(done)
    if not work.shards:
        status.count(summary.rows, summary.rows, summary.failed)
    if not again and output_folder.is_finished(plan, done):
        if files.REPORT not in storage.list_names(output):  # an earlier job was killed before it wrote the report
            content = make_report(summary=summary, seconds={}, status="already finished")
            save_report(output, lambda: prediction_page(content))
        _print_summary(summary, skipped, output, "already finished; nothing to do")
        return
    _require_few_errors(summary.failed, plan, done, config.max_errors)
    speed = "all shards were already written"
    clock.lap("listing files, importing, checking shards")
    if work.shards:
        _print_work(start, work)
        speed = _run(work, done, model, weights, config, clock, status)
    status.enter("finishing")
    with checks.translate_write_errors(output):
        summary = output_folder.finish(plan, done, skipped["--images"], start.changed)
    clock.lap("finishing")
    content = make_report(summary=summary, seconds=clock.laps, status=speed)
    save_report(output, lambda: prediction_page(content))
    _print_summary(summary, skipped, output, speed)


def _plan(config: PredictConfig, model: ModelConfig, photos: pa.Table, output: str, checkpoint_sha256: str) -> Plan:
    """Return the plan: the photos' names, and every setting that affects the bytes of the output.

    Each worker resolves the precision "auto" for its own hardware, so the bytes also depend on that.
    """
    outputs = Outputs(
        png=config.png, overlay=config.overlay, probabilities=config.probabilities, coco_rle=config.coco_rle
    )
    tiling = tiling_of(model, config.tile, config.tile_overlap)
    settings = {
        "checkpoint_sha256": checkpoint_sha256,
        "classes": list(model.class_names),
        "palette": [list(colour) for colour in model.palette],
        "device": "cuda" if config.use_gpu else "cpu",
        "batch_size": config.photos_per_pass,
        "precision": config.precision,
        "max_pixels": config.max_pixels,
        "tile": tiling and list(tiling.tile_hw),
        "tile_overlap": tiling.overlap if tiling else 0,
    }
    if tiling is not None and tiling.keeps_scale:
        settings["keeps_scale"] = True  # only then, so that plans of earlier versions stay as they are
    return make_plan(photos, output, shard_size=config.shard_size, outputs=outputs, settings=settings)


def _print_work(start: Start, work: Work) -> None:
    """Print which photos are added to an output, and which are predicted again."""
    num_again = sum(map(len, work.again.values()))
    counts = {"new photos": start.num_new, "changed or failed": num_again, "gone (rows kept)": start.num_gone}
    found = [f"{what}: {count}" for what, count in counts.items() if count]
    if found:
        print("; ".join(found), flush=True)


def _run(
    work: Work,
    done: dict[int, Summary],
    model: ModelConfig,
    weights: bytes,
    config: PredictConfig,
    clock: Clock,
    status: JobStatus,
) -> str:
    """Predict the photos of `work` and add the summaries to `done`. Return a line about the speed."""
    plan = work.plan
    from petseg.cluster import connect, metrics, resources
    from petseg.pipelines.predict import IF_OUT_OF_MEMORY, predict_shards
    from petseg.pipelines.shards import run_shards

    status.enter("starting Ray")
    connect.connect(debug=cli.is_debugging())
    metrics.export_status(status)
    images = place_to_share(storage.absolute(config.images), plan.manifest["image"])
    locations = {"--images": images, "--output": plan.target.output}
    resources.require_shared(locations)
    # Wait for the nodes first: the work is divided over those present when the prediction starts.
    bundle = ({"GPU": 1} if config.use_gpu else {}) | {"CPU": 1}
    resources.require(bundle, config.num_workers, "--num-workers", config.wait_min * 60, status.wait)
    resources.require_shared(locations)  # again, because nodes may have joined while waiting
    with checks.translate_write_errors(plan.target.output):
        output_folder.begin(plan, overwrite=config.overwrite)
        storage.write(storage.join(plan.target.output, files.CONFIG), cli.as_file(config))
    clock.lap("starting Ray")

    failed = output_folder.total(done).failed

    def count(shard: int, summary: Summary) -> tuple[int, int]:
        return work.num_rows(shard), summary.failed - (done[shard].failed if shard in done else 0)

    def shards_within_error_limit() -> Iterator[tuple[int, Summary]]:
        all_failed = failed
        for shard, summary in predict_shards(work, model, weights, config):
            all_failed += count(shard, summary)[1]
            yield shard, summary
            _require_few_errors(all_failed, plan, done, config.max_errors)

    total = plan.manifest.num_rows
    before = total - sum(map(work.num_rows, work.shards)), failed
    status.enter("predicting")
    shards = shards_within_error_limit()
    speed = run_shards(shards, done, count, total, before, "images", status, IF_OUT_OF_MEMORY)
    clock.lap("starting processes, predicting")
    return speed


def _require_few_errors(failed: int, plan: Plan, done: dict[int, Summary], max_errors: float | None) -> None:
    """Raise `JobError` if more photos have failed than --max-errors allows."""
    total = plan.manifest.num_rows
    if max_errors is None or failed <= (max_errors * total if max_errors < 1 else max_errors):
        return
    finished = output_folder.total(done)
    raise JobError(
        f"{failed} of {finished.rows} finished photos failed, more than --max-errors {max_errors:g} allows ({total} "
        f"photos in all); {'; '.join(finished.first_errors)}. Finished shards are kept, failed photos included: run "
        "the same command with a higher --max-errors, or fix the photos and give another --output"
    )


def _print_summary(summary: Summary, skipped: listing.Skipped, output: str, speed: str) -> None:
    print(f"{speed}; {summary.rows} rows, {summary.failed} failed: {output}")
    for line in listing.skipped_lines(skipped):
        print(f"  {line}")
    for line in note_lines(summary.notes):
        print(f"  note: {line}")
    for error in summary.first_errors:
        print(f"  failed: {error}")
    if summary.failed > len(summary.first_errors):
        print(f"  … for all errors see the column `error` of {output}/part-*.parquet")


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main)
