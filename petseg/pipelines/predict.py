"""Predict and write the missing shards of a prediction with Ray Data: read and decode, predict, write.

Decoding and writing are tasks on any core of the cluster. The network is in actors, one per worker.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from petseg import storage
from petseg.cluster import resources
from petseg.config.model import ModelConfig
from petseg.config.predict import PredictConfig
from petseg.data.photo_table import place_to_share
from petseg.data.tiles import tiling_of
from petseg.errors import JobError, UnavailableError
from petseg.inference import crash_guard
from petseg.inference.plan import Summary, Target, Work
from petseg.inference.shard import predict_shard, read_shard, write_shard
from petseg.pipelines.datasets import WHOLE_BLOCKS, catch_unavailable, data_context, unavailable_reason
from petseg.pipelines.shards import iter_shards, report_shard
from petseg.storage import checks

_SHARDS_AHEAD = 16
"""Shards in progress for each worker, beside those that are being decoded. That many wait for slow storage, too."""

IF_OUT_OF_MEMORY = (
    "finished work is kept: use machines with more memory or fewer --num-workers and run the same command again, or "
    "start over in another --output with a lower --batch-size, --shard-size or --max-pixels"
)
"""Remedy if the memory is full. Other settings than the number of workers would change the output."""

_PREVIEW_BYTES = 200_000
"""Usual size in bytes of a photo's preview."""


def predict_shards(
    work: Work, model: ModelConfig, weights: bytes, config: PredictConfig
) -> Iterator[tuple[int, Summary]]:
    """Yield each shard of `work`, once it is committed, in any order.

    Raises `JobError` if a shard cannot be written or storage does not answer.
    """
    target, num_shards = work.plan.target, len(work.shards)
    read = partial(
        _read,
        work=ray.put(work),
        images=place_to_share(storage.absolute(config.images), work.plan.manifest["image"]),
        size_hw=model.image_size,
        max_pixels=config.max_pixels,
        resize=model.resize,
        tiling=tiling_of(model, config.tile, config.tile_overlap),
        previews=config.overlay,
        decode_timeout=config.decode_timeout,
    )
    cpus = resources.cpus_per_worker(config.num_workers)
    with data_context(**_memory_limit(model, config)):
        written = (
            # Tables of our own would take three times as long to start.
            ray.data.range(num_shards, override_num_blocks=num_shards)
            .map_batches(read, num_cpus=1 if resources.total("CPU") > 1 else 0.5, **WHOLE_BLOCKS)
            .map_batches(
                _ShardPredictor,
                fn_constructor_args=(model, weights, config, target, cpus),
                compute=ray.data.ActorPoolStrategy(size=config.num_workers),
                # Less than a core each leaves cores for decoding: the model's threads take what they get.
                num_cpus=0.5,
                num_gpus=1 if config.use_gpu else 0,
                runtime_env={"env_vars": resources.KEEP_MEMORY},
                **WHOLE_BLOCKS,
            )
            .map_batches(partial(_write, target=target, again=frozenset(work.again)), num_cpus=0.25, **WHOLE_BLOCKS)
        )
    return iter_shards(written, Summary)


def _memory_limit(model: ModelConfig, config: PredictConfig) -> dict[str, float]:
    """Return the setting of Ray Data that limits how far it reads ahead.

    By default it reads ahead until half of its object store is full: gigabytes that make nothing faster.
    """
    if config.probabilities:  # they have the photos' own sizes, which are not known yet
        return {}
    height, width = model.image_size
    shard_bytes = config.shard_size * (3 * height * width + (_PREVIEW_BYTES if config.overlay else 0))
    wanted = shard_bytes * (_SHARDS_AHEAD * config.num_workers + 2 * resources.total("CPU"))
    fraction = min(0.5, wanted / resources.total("object_store_memory"))
    return {"override_object_store_memory_limit_fraction": fraction}


def _read(index: pa.Table, work: Any, images: str, **settings: Any) -> pa.Table:
    """Read the shard at an index of the shards of `work`, which travels once to each machine, not once per shard."""
    to_do: Work = ray.get(work)
    shard = to_do.shards[index["id"][0].as_py()]
    rows = to_do.rows(shard)
    with crash_guard.crash_marker(_marker_name(to_do.plan.target, shard, "read")) as died_before:
        return catch_unavailable(lambda: _read_below(images, rows, **settings, in_subprocess=died_before))


def _read_below(images: str, rows: pa.Table, **settings: Any) -> pa.Table:
    """Do as `read_shard`, but blame no photo if a machine that joined late does not have the folder."""
    if storage.is_local(images) and not Path(images).exists():
        raise UnavailableError(f"--images {images}: not on every machine; give a location that all of them can reach")
    return read_shard(rows, **settings)


def _marker_name(target: Target, shard: int, stage: str) -> str:
    job = hashlib.sha256(f"{target.output}\n{target.fingerprint}".encode()).hexdigest()[:16]
    return f"{job}-{shard}-{stage}"


class _ShardPredictor:
    """Process that holds the network, on one GPU or on some cores."""

    def __init__(self, model: ModelConfig, weights: bytes, config: PredictConfig, target: Target, cpus: int) -> None:
        import torch  # here, because the processes that decode and write would take seconds and memory to load it

        from petseg.inference.predictor import Predictor
        from petseg.models import checkpoint

        torch.set_num_threads(1)  # for each of the predictor's threads
        predictor = Predictor(
            checkpoint.build_model(model, weights, config.checkpoint),
            torch.device("cuda" if config.use_gpu else "cpu"),
            config.photos_per_pass,
            model.image_size,
            config.precision,
            resize=model.resize,
            tiling=tiling_of(model, config.tile, config.tile_overlap),
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
            predict_tiled=predictor.tiled,
            pool=ThreadPoolExecutor(cpus),
            decode_timeout=config.decode_timeout,
        )
        self._target = target

    def __call__(self, decoded: pa.Table) -> pa.Table:
        if unavailable_reason(decoded):
            return decoded
        shard = decoded["shard"][0].as_py()
        with crash_guard.crash_marker(_marker_name(self._target, shard, "large")) as died_before:
            return catch_unavailable(lambda: self._predict_shard(decoded, in_subprocess=died_before))


def _write(predicted: pa.Table, target: Target, again: frozenset[int]) -> pa.Table:
    """Write a shard, or the rows of one in `again`."""
    reason = unavailable_reason(predicted)
    shard = -1 if reason else predicted["shard"][0].as_py()

    def write() -> Summary:
        if reason is not None:
            raise JobError(f"{reason}; {checks.RERUN}")
        with checks.translate_write_errors(target.output):
            return write_shard(predicted, target, into_existing=shard in again)

    return report_shard(shard, write)
