"""SIGKILL of whatever can die under a prediction job: what it has written, and writes after, stays the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import drawn
import kill_predict
import pytest
from conftest import ROOT

PHOTOS = 80


@pytest.mark.ray
@pytest.mark.own_ray
def test_killed_at_random_moments_and_started_again() -> None:
    """The real command line: its driver and its workers; compared byte for byte after each kill."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_predict.py"), "--kills", "2", "--photos", str(PHOTOS)]
    done = subprocess.run(
        [*command, "--seed", "3", "--victims", "driver", "model"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 kills (")


@pytest.mark.ray
@pytest.mark.own_ray
def test_a_node_that_vanishes_takes_nothing_with_it(cluster: Any, tmp_path: Path) -> None:
    """The node with the model, in the middle: the others go on, and the job ends by itself with the same bytes."""
    checkpoint, images = drawn.untrained(tmp_path), drawn.photos(tmp_path, PHOTOS)
    (images / "broken.jpg").write_bytes(b"broken")
    (images / "pet_0003.jpg").unlink()
    command = [sys.executable, str(ROOT / "jobs" / "predict.py"), "--checkpoint", str(checkpoint)]
    command += ["--images", str(images), "--shard-size", "2", "--output"]
    both = [cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)]
    job = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("part-*")):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    [lost] = [node for node in both if kill_predict.matching(raylet(node), kill_predict.VICTIMS["model"])]
    os.kill(raylet(lost), signal.SIGKILL)
    in_the_middle = len(list((tmp_path / "killed").glob("part-*")))
    log, _ = job.communicate(timeout=180)
    assert job.returncode == 0, log.decode()
    assert 0 < in_the_middle < PHOTOS // 2

    done = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    whole = kill_predict.contents(tmp_path / "whole")
    assert len(whole) == 3 + PHOTOS // 2 + PHOTOS - 1  # and one photo is broken
    assert kill_predict.contents(tmp_path / "killed") == whole


def raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid
