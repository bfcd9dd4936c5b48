"""Autoscaling: nodes are added for a prediction job and removed after it.

Uses Ray's own autoscaler. Its nodes are further Rays on this machine instead of cloud machines.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import drawn
import pyarrow.parquet as pq
import pytest
import ray_head
from conftest import ROOT
from ray_head import Head, wait_until

PHOTOS = 24
MAX_NODES = 2
ON_SHARED_DISK = """
import runpy, sys
from petseg.storage import checks
checks.is_own_disk = lambda location: False  # all nodes are on this machine
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HEAD_ID = "f" * 51 + "00000"  # the head's id in Ray's fake node provider


def scaling(address: str) -> dict[str, object]:
    """Return the content of a cluster.yaml after `ray up` has filled in the defaults."""
    nothing: dict[str, object] = {
        name: []
        for name in (
            "cluster_synced_files",
            "head_setup_commands",
            "head_start_ray_commands",
            "initialization_commands",
            "rsync_exclude",
            "rsync_filter",
            "setup_commands",
            "worker_setup_commands",
            "worker_start_ray_commands",
        )
    }
    return nothing | {
        "cluster_name": "petseg",
        "max_workers": MAX_NODES,
        "idle_timeout_minutes": 0.1,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "provider": {
            # Named by its class: "fake_multinode" reads a file that is not in Ray's wheel.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "gcs_address": address,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {
                "resources": {"CPU": 2, "object_store_memory": 150 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MAX_NODES,
            },
        },
    }


@pytest.fixture
def head() -> Iterator[Head]:
    """A head without CPUs, which starts nodes when there is work."""
    with ray_head.new(RAY_AUTH_MODE="disabled") as head:
        config = head.folder / "cluster.json"
        config.write_text(json.dumps(scaling(head.address)))
        head.start(
            f"ray start --head {head.flags} --num-cpus=0 --include-dashboard=false --autoscaling-config={config}",
            AUTOSCALER_UPDATE_INTERVAL_S="1",
            RAY_CLOUD_INSTANCE_ID=HEAD_ID,
            RAY_FAKE_CLUSTER="1",
            RAY_enable_autoscaler_v2="1",
        )
        yield head


def count_nodes(head: Head) -> int:
    """Return the number of live nodes without the head."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] - compiled

    nodes = GcsClient(address=head.address).get_all_node_info(timeout=20).values()
    return sum(node.state == 0 and not node.is_head_node for node in nodes)


@pytest.mark.ray
@pytest.mark.own_ray
def test_autoscaler_prediction_job_nodes_are_added_then_removed(head: Head, tmp_path: Path) -> None:
    checkpoint, photos = drawn.untrained(tmp_path), drawn.photos(tmp_path, PHOTOS)
    (photos / "broken.jpg").write_bytes(b"broken")
    assert count_nodes(head) == 0

    output, log = tmp_path / "masks", tmp_path / "log"
    command = [sys.executable, "-c", ON_SHARED_DISK, str(ROOT / "jobs" / "predict.py"), "--checkpoint", str(checkpoint)]
    command += ["--images", str(photos), "--output", str(output), "--shard-size", "2"]
    env = head.env | ray_head.LOOPBACK | {"RAY_ADDRESS": head.address}
    with log.open("wb") as file:
        job = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
    most = 0

    def has_ended() -> bool:
        nonlocal most
        most = max(most, count_nodes(head))
        return job.poll() is not None

    try:
        wait_until(has_ended, 180, log.read_text)
    finally:
        job.kill()
    assert job.returncode == 0, log.read_text()
    assert "waiting for 1 CPU, have 0; the cluster must grow" in log.read_text()
    assert 1 <= most <= MAX_NODES
    rows = [row for file in sorted(output.glob("part-*")) for row in pq.read_table(file).to_pylist()]
    assert [row["id"] for row in rows] == sorted(path.stem for path in photos.iterdir())
    assert [row["id"] for row in rows if row["error"] is not None] == ["broken"]

    wait_until(lambda: count_nodes(head) == 0, 60)
    assert head.running()
