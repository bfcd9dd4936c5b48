"""Write a mask for every photo of a folder, as Parquet shards and PNG files.

python jobs/predict.py --checkpoint runs/first --images photos --output masks
ray job submit --working-dir . -- python jobs/predict.py …
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from petseg import cli, manifest, shards, storage
from petseg.config import InputError, ModelConfig, PredictConfig
from petseg.shards import Plan, Summary


def main() -> None:
    config = cli.parse(PredictConfig)
    images, output = storage.absolute(config.images), storage.absolute(config.output)
    if f"{output}/".startswith(f"{images}/"):
        raise InputError(
            f"--output {output}: it lies in --images, so its masks would be taken for photos; choose another"
        )
    storage.require_writable(output, "--output")
    photos = manifest.discover(images)

    # torch takes seconds to load: only once the flags and folders are known to be good.
    from petseg import checkpoint

    found = checkpoint.find(storage.absolute(config.checkpoint))
    weights = checkpoint.read_weights(found)
    plan = shards.make_plan(
        photos,
        output,
        shard_size=config.shard_size,
        png=config.png,
        settings={
            "checkpoint_sha256": checkpoint.fingerprint(found, weights),
            "batch_size": config.batch_size,
            "precision": config.precision,
            "max_pixels": config.max_pixels,
        },
    )
    done = shards.find_done(plan)
    if shards.is_finished(plan, done):
        _report(shards.total(done), output, "finished before; nothing to do")
        return
    how = "nothing was left to do"
    if len(done) < plan.target.num_shards:
        how = _run(plan, done, found.model, weights, config)
    _report(shards.finish(plan, done), output, how)


def _run(plan: Plan, done: dict[int, Summary], model: ModelConfig, weights: bytes, config: PredictConfig) -> str:
    """Do the shards that are not in `done`, and put them there; returns how fast that was."""
    import ray.data

    from petseg import cluster

    cluster.connect()
    cluster.require("GPU" if config.use_gpu else "CPU", config.num_workers, "--num-workers")
    shards.begin(plan)
    todo = [shard for shard in range(plan.target.num_shards) if shard not in done]
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = None  # one shard stays one block, however large it is
    whole_blocks: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True}
    written = (
        ray.data.from_arrow([plan.rows(shard) for shard in todo])
        .map_batches(
            partial(shards.read_shard, size_hw=model.image_size, max_pixels=config.max_pixels),
            num_cpus=1 if cluster.total("CPU") > 1 else 0.5,
            **whole_blocks,
        )
        .map_batches(
            _ShardPredictor,
            fn_constructor_args=(model, weights, config, cluster.cpus_per_worker(config.num_workers)),
            compute=ray.data.ActorPoolStrategy(size=config.num_workers),
            # Less than a core each, so that some are left to decode: the threads of the model take what they get.
            num_cpus=0.5,
            num_gpus=1 if config.use_gpu else 0,
            **whole_blocks,
        )
        .map_batches(partial(_write, target=plan.target), num_cpus=0.25, **whole_blocks)
    )
    images_done, seconds = 0, 0.0
    total, started = plan.manifest.num_rows - shards.total(done).rows, time.perf_counter()
    for row in written.iter_rows():
        done[row["shard"]] = Summary(row["rows"], row["failed"], list(row["first_errors"]))
        images_done += row["rows"]
        seconds = time.perf_counter() - started
        left_s = round(seconds / images_done * (total - images_done))
        print(
            f"{images_done}/{total} images  {images_done / seconds:.0f} images/s  "
            f"{sum(summary.failed for summary in done.values())} failed  ETA {left_s // 60}:{left_s % 60:02}",
            flush=True,
        )
    return f"{images_done} images in {seconds:.1f} s, {images_done / seconds:.1f} images/s"


class _ShardPredictor:
    """One process that holds the network, on one GPU or on some cores."""

    def __init__(self, model: ModelConfig, weights: bytes, config: PredictConfig, cpus: int) -> None:
        import torch

        from petseg import checkpoint
        from petseg.predict import Predictor

        torch.set_num_threads(cpus)
        network = checkpoint.build_model(model, weights, config.checkpoint)
        device = torch.device("cuda" if config.use_gpu else "cpu")
        self._predict = Predictor(network, device, config.batch_size, config.precision)
        self._model = model
        self._encoders = ThreadPoolExecutor(cpus)

    def __call__(self, rows: pa.Table) -> pa.Table:
        return shards.predict_shard(rows, self._model.image_size, self._predict, self._model.palette, self._encoders)


def _write(rows: pa.Table, target: shards.Target) -> pa.Table:
    shard = rows["shard"][0].as_py()
    summary = shards.write_shard(rows, target)
    return pa.Table.from_pylist([{"shard": shard, **vars(summary)}])


def _report(summary: Summary, output: str, how: str) -> None:
    print(f"{how}; {summary.rows} rows, {summary.failed} failed: {output}")
    for error in summary.first_errors:
        print(f"  failed: {error}")
    if summary.failed > len(summary.first_errors):
        print(f"  … the rest is in the column `error` of {output}/part-*.parquet")


if __name__ == "__main__":
    cli.run(main)
