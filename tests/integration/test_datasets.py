"""Shared parts of the Ray Data pipelines."""

import contextlib
import io
import json
from collections.abc import Iterator

import pyarrow as pa
import pytest
import ray.data
import ray.exceptions

from petseg.cli.json_log import set_log_format
from petseg.errors import JobError, UnavailableError
from petseg.inference.plan import Summary
from petseg.pipelines import decode
from petseg.pipelines.datasets import WHOLE_BLOCKS, catch_unavailable, data_context, unavailable_reason
from petseg.pipelines.shards import iter_shards, report_shard, run_shards
from petseg.status import JobStatus


def test_catch_unavailable_storage_error_becomes_a_table() -> None:
    def fail() -> pa.Table:
        raise UnavailableError("s3://bucket/a: no answer")

    table = pa.table({"id": ["a"]})
    assert catch_unavailable(lambda: table) is table and unavailable_reason(table) is None
    assert unavailable_reason(catch_unavailable(fail)) == "s3://bucket/a: no answer"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_data_context_applies_inside_and_is_restored() -> None:
    before = ray.data.DataContext.get_current().copy()
    with data_context(op_resource_reservation_enabled=False) as context:
        context.execution_options.preserve_order = True
        inside = ray.data.range(1)
    outside = ray.data.range(1)
    assert inside.context.target_max_block_size is None
    assert not inside.context.op_resource_reservation_enabled
    assert inside.context.execution_options.preserve_order
    for now in (outside.context, ray.data.DataContext.get_current()):
        assert now.target_max_block_size == before.target_max_block_size is not None
        assert now.op_resource_reservation_enabled
        assert now.execution_options.preserve_order == before.execution_options.preserve_order


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_run_shards_collects_summaries_and_one_failure_stops_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    def work(index: pa.Table) -> pa.Table:
        shard = index["id"][0].as_py()

        def finish() -> Summary:
            if shard == 7:
                raise JobError("--output out: cannot be written")
            return Summary(10, shard, [f"{shard}: broken"])

        return report_shard(shard, finish)

    def shards(number: int) -> ray.data.Dataset:
        with data_context():
            return ray.data.range(number, override_num_blocks=number).map_batches(work, **WHOLE_BLOCKS)

    def count(shard: int, summary: Summary) -> tuple[int, int]:
        counted.append((shard, shard in done))
        return summary.rows, summary.failed

    done, counted = {5: Summary(10, 0, [])}, []
    status = JobStatus("predict", "out")
    speed = run_shards(iter_shards(shards(3), Summary), done, count, 40, (10, 1), "images", status, "more memory")
    assert done == {number: Summary(10, number, [f"{number}: broken"]) for number in range(3)} | {5: Summary(10, 0, [])}
    assert sorted(counted) == [(0, False), (1, False), (2, False)]  # before they are done
    assert speed.startswith("30 images in ") and speed.endswith(" images/s")
    assert capsys.readouterr().out.splitlines()[-1].startswith("40/40 images  100%")
    found = status.get()
    assert (found.done_before, found.done, found.failed, found.total) == (10, 40, 4, 40)
    with pytest.raises(JobError, match="--output out: cannot be written"):
        done = {}
        run_shards(iter_shards(shards(8), Summary), done, count, 80, (0, 0), "images", status, "more memory")


def test_run_shards_and_decode_full_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Iterator[tuple[int, Summary]]:
        raise ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to …")
        yield

    with pytest.raises(JobError, match=r"^out of memory: Ray ended one task 3 times .*; more memory$"):
        run_shards(fail(), {}, lambda *_: (1, 0), 1, (0, 0), "images", JobStatus("predict", "out"), "more memory")
    monkeypatch.setattr(decode.ray.data, "from_arrow", lambda _: next(fail()))
    with pytest.raises(JobError, match=r"^out of memory: Ray ended one task 3 times .*; end other programs"):
        decode._read_blocks([], lambda: pa.table({}))


def test_run_shards_json_log_has_an_object_per_shard_and_no_progress_line() -> None:
    stream, status = io.StringIO(), JobStatus("predict", "out")
    results = iter([(4, Summary(10, 1, ["a: broken"])), (2, Summary(5, 0, []))])
    with contextlib.redirect_stdout(stream):
        set_log_format("json", "predict")
        run_shards(results, {}, lambda _, summary: (summary.rows, summary.failed), 15, (0, 0), "images", status)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(line.pop("time") and line.pop("seconds") >= 0 and line.pop("rate") > 0 for line in lines)
    assert lines == [
        {"job": "predict", "event": "shard", "shard": shard, "rows": rows, "failed": failed}
        for shard, rows, failed in ((4, 10, 1), (2, 5, 0))
    ]
