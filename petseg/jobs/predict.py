"""Write a mask for every photo of a folder, as Parquet shards and PNG files.

python jobs/predict.py --checkpoint runs/first --images photos --output masks
ray job submit --working-dir . -- python jobs/predict.py …
"""

import hashlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from petseg import cli, files, storage
from petseg.config.base import ModelConfig
from petseg.config.predict import PredictConfig
from petseg.data import manifest
from petseg.errors import JobError, UnavailableError
from petseg.inference import crash_guard, output_folder
from petseg.inference.plan import MASK_FOLDER, OVERLAY_FOLDER, Outputs, Plan, Summary, Target, make_plan, rows_of
from petseg.inference.shard import predict_shard, read_shard, write_shard
from petseg.progress import Clock, Progress
from petseg.reports import jobs as reports
from petseg.storage import checks


def main() -> None:
    """Parse `sys.argv`, do the shards that are missing, and write the report."""
    config = cli.parse("predict", PredictConfig, about=__doc__)
    images, output = storage.absolute(config.images), storage.absolute(config.output)
    checks.refuse_overlap(output, {"--images": images}, (MASK_FOLDER, OVERLAY_FOLDER))
    checks.require_writable(output, "--output")
    clock = Clock()
    photos = manifest.discover(images)
    if config.limit is not None:
        photos = manifest.sample(photos, config.limit)

    # torch takes seconds to load: only once the flags and folders are known to be good.
    from petseg.models import checkpoint

    found = checkpoint.find(storage.absolute(config.checkpoint))
    weights = checkpoint.read_weights(found)
    plan = make_plan(
        photos,
        output,
        shard_size=config.shard_size,
        outputs=Outputs(
            png=config.png,
            overlay=config.overlay,
            probabilities=config.probabilities,
            coco_rle=config.coco_rle,
        ),
        settings={
            "checkpoint_sha256": checkpoint.fingerprint(found, weights),
            "device": "cuda" if config.use_gpu else "cpu",
            "batch_size": config.photos_per_pass,
            "precision": config.precision,
            "max_pixels": config.max_pixels,
            "tile": config.tile_hw and list(config.tile_hw),
            "tile_overlap": config.overlap,
        },
    )
    of_prediction = partial(reports.of_prediction, plan, found.model, config.max_pixels)
    done = output_folder.find_done(plan, overwrite=config.overwrite)
    if output_folder.is_finished(plan, done):
        summary = output_folder.total(done)
        if files.REPORT not in storage.list_names(output):  # a kill came before it
            reports.keep(output, partial(of_prediction, summary, seconds={}, how="finished before"))
        _say(summary, output, "finished before; nothing to do")
        return
    _stop_at(output_folder.total(done).failed, plan, done, config.max_errors)
    how = "nothing was left to do"
    clock.lap("listing, imports, what is done")
    if len(done) < plan.target.num_shards:
        how = _run(plan, done, found.model, weights, config, clock)
    with checks.writing(output):
        summary = output_folder.finish(plan, done)
    clock.lap("the end")
    reports.keep(output, partial(of_prediction, summary, seconds=clock.laps, how=how))
    _say(summary, output, how)


def _run(
    plan: Plan, done: dict[int, Summary], model: ModelConfig, weights: bytes, config: PredictConfig, clock: Clock
) -> str:
    """Do the shards that are not in `done`, and put them there; returns how fast that was."""
    from petseg.cluster import connect

    connect.connect()
    places = {"--images": storage.absolute(config.images), "--output": plan.target.output}
    connect.require_shared(places)
    # What there is of the cluster by then decides how its work is cut.
    bundle = ({"GPU": 1} if config.use_gpu else {}) | {"CPU": 1}
    connect.require(bundle, config.num_workers, "--num-workers", config.wait_min * 60)
    connect.require_shared(places)  # nodes may have come
    with checks.writing(plan.target.output):
        output_folder.begin(plan, overwrite=config.overwrite)
        storage.write(storage.join(plan.target.output, cli.CONFIG_FILE), cli.as_file(config))
    clock.lap("starting Ray")
    before = output_folder.total(done)
    failed, started = before.failed, time.perf_counter()
    progress = Progress(plan.manifest.num_rows, before.rows, before.failed, sys.stdout)
    try:
        for shard, summary in _predicted(plan, done, model, weights, config):
            done[shard] = summary
            failed += summary.failed
            progress.add(summary.rows, summary.failed)
            _stop_at(failed, plan, done, config.max_errors)
    finally:
        progress.close()
    clock.lap("predicting, the start of the processes included")
    images_done, seconds = output_folder.total(done).rows - before.rows, time.perf_counter() - started
    return f"{images_done} images in {seconds:.1f} s, {images_done / seconds:.1f} images/s"


def _predicted(
    plan: Plan, done: dict[int, Summary], model: ModelConfig, weights: bytes, config: PredictConfig
) -> Iterator[tuple[int, Summary]]:
    """Each shard that is not in `done`, once it is committed, in any order.

    Raises `JobError` where one cannot be written, or storage does not answer.
    """
    import ray.data

    from petseg.cluster import connect

    _bound_what_waits(model, config)
    whole_blocks: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True}
    left = np.array([shard for shard in range(plan.target.num_shards) if shard not in done])
    read = partial(
        _read,
        left=left,
        images=storage.absolute(config.images),
        manifest=ray.put(plan.manifest),
        shard_size=plan.shard_size,
        target=plan.target,
        size_hw=model.image_size,
        max_pixels=config.max_pixels,
        resize=model.resize,
        tile_hw=config.tile_hw,
        previews=config.overlay,
    )
    written = (
        ray.data.range(len(left), override_num_blocks=len(left))  # tables of our own take thrice as long to begin
        .map_batches(read, num_cpus=1 if connect.total("CPU") > 1 else 0.5, **whole_blocks)
        .map_batches(
            _ShardPredictor,
            fn_constructor_args=(
                model,
                weights,
                config,
                plan.target,
                connect.cpus_per_worker(config.num_workers),
            ),
            compute=ray.data.ActorPoolStrategy(size=config.num_workers),
            # Less than a core each, so that some are left to decode: the threads of the model take what they get.
            num_cpus=0.5,
            num_gpus=1 if config.use_gpu else 0,
            runtime_env={"env_vars": connect.KEEP_MEMORY},
            **whole_blocks,
        )
        .map_batches(partial(_write, target=plan.target), num_cpus=0.25, **whole_blocks)
    )
    for row in written.iter_rows():
        if row["refusal"] is not None:
            raise JobError(row["refusal"])
        yield row["shard"], Summary(row["rows"], row["failed"], list(row["first_errors"]))


def _bound_what_waits(model: ModelConfig, config: PredictConfig) -> None:
    """Ray would read ahead until half of its object store is full: gigabytes that make nothing faster."""
    import ray.data

    from petseg.cluster import connect

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = None  # a shard stays one block, however large it is
    height, width = model.image_size
    shard_bytes = config.shard_size * (3 * height * width + (_PREVIEW_BYTES if config.overlay else 0))
    wanted = shard_bytes * (_SHARDS_AHEAD * config.num_workers + 2 * connect.total("CPU"))
    if not config.probabilities:  # at the photos' size, which is not known; then Ray's half it is
        context.override_object_store_memory_limit_fraction = min(0.5, wanted / connect.total("object_store_memory"))


def _read(
    number: pa.Table, left: np.ndarray, images: str, manifest: Any, shard_size: int, target: Target, **settings: Any
) -> pa.Table:
    """The shard that stands in `left` at the number; the manifest travels once to each machine, not once a shard."""
    import ray

    from petseg.cluster import connect

    shard = int(left[number["id"][0].as_py()])
    table = rows_of(ray.get(manifest), shard, shard_size)
    with crash_guard.attempt(_attempt_name(target, shard, "read")) as died_before:
        return connect.or_refusal(lambda: _read_below(images, table, **settings, apart=died_before))


def _read_below(images: str, table: pa.Table, **settings: Any) -> pa.Table:
    """On a machine that came late and does not have the folder, no photo is to blame."""
    if storage.is_local(images) and not Path(images).is_dir():
        raise UnavailableError(f"--images {images}: not on every machine; give a place that all of them reach")
    return read_shard(table, **settings)


def _attempt_name(target: Target, shard: int, stage: str) -> str:
    job = hashlib.sha256(f"{target.output}\n{target.fingerprint}".encode()).hexdigest()[:16]
    return f"{job}-{shard}-{stage}"


_SHARDS_AHEAD = 16
"""Shards on their way for each worker, beside those that are being decoded: to wait for slow storage, too."""

_PREVIEW_BYTES = 200_000
"""Of one photo's preview, as a rule."""


class _ShardPredictor:
    """One process that holds the network, on one GPU or on some cores."""

    def __init__(self, model: ModelConfig, weights: bytes, config: PredictConfig, target: Target, cpus: int) -> None:
        import torch

        from petseg.inference.predictor import Predictor
        from petseg.models import checkpoint

        torch.set_num_threads(1)  # of each of the predictor's threads
        predictor = Predictor(
            checkpoint.build_model(model, weights, config.checkpoint),
            torch.device("cuda" if config.use_gpu else "cpu"),
            config.photos_per_pass,
            model.image_size,
            config.precision,
            resize=model.resize,
            threads=1 if config.use_gpu else cpus,
            probabilities=config.probabilities,
        )
        self._predict_shard = partial(
            predict_shard,
            size_hw=model.image_size,
            max_pixels=config.max_pixels,
            outputs=target.outputs,
            palette=model.palette,
            predict=predictor,
            predict_tiled=partial(predictor.tiled, tile_hw=config.tile_hw or model.image_size, overlap=config.overlap),
            pool=ThreadPoolExecutor(cpus),
        )
        self._target = target

    def __call__(self, decoded: pa.Table) -> pa.Table:
        from petseg.cluster import connect

        if connect.refusal(decoded):
            return decoded
        with crash_guard.attempt(_attempt_name(self._target, decoded["shard"][0].as_py(), "large")) as died_before:
            return connect.or_refusal(lambda: self._predict_shard(decoded, apart=died_before))


def _write(predicted: pa.Table, target: Target) -> pa.Table:
    from petseg.cluster import connect

    shard, summary = -1, Summary(0, 0, [])
    refusal = connect.refusal(predicted)
    if refusal is not None:
        refusal += "; what is finished is kept: give the same command again"
    else:
        shard = predicted["shard"][0].as_py()
        try:
            summary = write_shard(predicted, target)
        except OSError as error:  # told the driver as a row, as Ray would show a traceback of many lines
            refusal = checks.cannot_write(target.output, error)
    table = {name: [value] for name, value in {"shard": shard, "refusal": refusal, **vars(summary)}.items()}
    return pa.table(table, schema=_WRITTEN)


_NUMBER, _TEXT = pa.int64(), pa.string()
_WRITTEN = pa.schema(
    {"shard": _NUMBER, "refusal": _TEXT, "rows": _NUMBER, "failed": _NUMBER, "first_errors": pa.list_(_TEXT)}
)


def _stop_at(failed: int, plan: Plan, done: dict[int, Summary], max_errors: float | None) -> None:
    """Raise `JobError` where more photos have failed than --max-errors allows."""
    if max_errors is None or failed <= (max_errors * plan.manifest.num_rows if max_errors < 1 else max_errors):
        return
    so_far = output_folder.total(done)
    raise JobError(
        f"{failed} of the first {so_far.rows} photos failed, and --max-errors {max_errors:g} of "
        f"{plan.manifest.num_rows} allows no more; {'; '.join(so_far.first_errors)}. What is finished is kept: "
        "look at these, or give the same command with a higher --max-errors"
    )


def _say(summary: Summary, output: str, how: str) -> None:
    print(f"{how}; {summary.rows} rows, {summary.failed} failed: {output}")
    for error in summary.first_errors:
        print(f"  failed: {error}")
    if summary.failed > len(summary.first_errors):
        print(f"  … the rest is in the column `error` of {output}/part-*.parquet")


def run() -> NoReturn:
    """Run `main` and exit with its code."""
    cli.run(main, "what is finished is kept: the same command goes on")
