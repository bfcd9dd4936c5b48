"""Score the shards of an evaluation with Ray Data: each worker holds a network, and does all of a shard's work."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data

from petseg.cluster import resources
from petseg.evaluation.shards import Scorer, Summary, Work
from petseg.evaluation.subjects import MaskSettings, NetworkSettings
from petseg.pipelines.datasets import WHOLE_BLOCKS, data_context
from petseg.pipelines.shards import iter_shards, report_shard

IF_OUT_OF_MEMORY = (
    "finished work is kept: use machines with more memory or fewer --num-workers and run the same command again, or "
    "start over in another --output with a lower --batch-size"
)
"""Remedy of an evaluation whose workers Ray ends because the memory is full."""


def score_shards(
    work: Work, settings: NetworkSettings | MaskSettings, num_workers: int, use_gpu: bool
) -> Iterator[tuple[int, Summary]]:
    """Yield each shard of `work`, once it is committed, in any order.

    Raises `JobError` if a shard cannot be written or storage does not answer.
    """
    cpus, num_shards = resources.cpus_per_worker(num_workers), len(work.shards)
    with data_context():
        scored = ray.data.range(num_shards, override_num_blocks=num_shards).map_batches(
            _ShardScorer,
            fn_constructor_args=(ray.put(work), ray.put(settings), cpus),
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            num_cpus=0.5,  # Ray Data needs a core for tasks of its own
            num_gpus=1 if use_gpu else 0,
            runtime_env={"env_vars": resources.KEEP_MEMORY},
            **WHOLE_BLOCKS,
        )
    return iter_shards(scored, Summary)


class _ShardScorer:
    """Process that scores shards, on one GPU or on some cores."""

    def __init__(self, work: Any, settings: Any, cpus: int) -> None:
        self._work: Work = ray.get(work)
        self._scorer: Scorer = ray.get(settings).build(cpus)  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, index: pa.Table) -> pa.Table:
        shard = self._work.shards[index["id"][0].as_py()]
        return report_shard(shard, lambda: self._work.score(self._scorer, shard))
