"""SIGKILL of a prediction job's processes and nodes: the output has the same bytes as without."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import drawn
import kill_predict
import pytest
from conftest import ROOT, assert_refused

from petseg import storage

PHOTOS = 80


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.own_ray
def test_predict_killed_at_random_moments_ends_with_the_same_bytes() -> None:
    """Kills the process with the network. Killing the driver: tests/integration/test_s3.py."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_predict.py"), "--kills", "1", "--photos", str(PHOTOS)]
    done = subprocess.run(
        [*command, "--seed", "3", "--victims", "model"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 kills (1 × model)")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.own_ray
def test_predict_lost_node_job_ends_with_the_same_bytes(cluster: Any, prefix: str, tmp_path: Path) -> None:
    """The node with the model is killed in the middle. The job continues on the others without a restart.

    Photos and masks are in the store, because nodes do not share a disk. A folder on a disk is refused.
    """
    checkpoint, images = drawn.untrained(tmp_path), drawn.photos(tmp_path, PHOTOS)
    (images / "broken.jpg").write_bytes(b"broken")
    (images / "pet_0003.jpg").unlink()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: storage.write(f"{prefix}/photos/{path.name}", path.read_bytes()), images.iterdir()))
    command = [sys.executable, str(ROOT / "jobs" / "predict.py"), "--checkpoint", str(checkpoint)]
    both = [cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)]
    for flag, places in (("--images", (images, f"{prefix}/out")), ("--output", (f"{prefix}/photos", tmp_path / "out"))):
        given = ["--images", str(places[0]), "--output", str(places[1])]
        refused = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
        several = "on the disk of one machine, and this cluster has several; give a location that all"
        assert_refused(refused, f"error: {flag} {tmp_path}", several)
    assert not (tmp_path / "out").exists() and not storage.list_names(f"{prefix}/out")

    command += ["--images", f"{prefix}/photos", "--shard-size", "2", "--output"]
    job = subprocess.Popen([*command, f"{prefix}/killed"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not shards_in(f"{prefix}/killed"):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    [lost] = [node for node in both if kill_predict.matching(raylet(node), kill_predict.VICTIMS["model"])]
    os.kill(raylet(lost), signal.SIGKILL)
    in_the_middle = len(shards_in(f"{prefix}/killed"))
    log, _ = job.communicate(timeout=180)
    assert job.returncode == 0, log.decode()
    assert 0 < in_the_middle < PHOTOS // 2

    done = subprocess.run([*command, f"{prefix}/whole"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    whole = kill_predict.contents(f"{prefix}/whole")
    assert len(whole) == 3 + PHOTOS // 2 + PHOTOS - 1  # and one photo is broken
    assert kill_predict.contents(f"{prefix}/killed") == whole


def shards_in(output: str) -> list[str]:
    return [name for name in storage.list_names(output) if name.startswith("part-")]


def raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid
