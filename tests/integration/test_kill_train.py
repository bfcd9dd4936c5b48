"""SIGKILL of a training run's processes and nodes, and a preemption notice: no finished epoch is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ec2_metadata
import kill_predict
import pytest
import torch
from conftest import ROOT, Store

from petseg import storage
from petseg.models import checkpoint
from petseg.training import run_folder

TRAIN_WORKER = r"^ray::\w*TrainWorker"


@pytest.fixture
def pairs(drawn: tuple[Path, Path], store: Store) -> tuple[str, str]:
    """URIs of the generated photos and masks in the store."""
    for folder in drawn:
        for path in folder.iterdir():
            storage.write(f"{store.url}/drawn/{folder.name}/{path.name}", path.read_bytes())
    return f"{store.url}/drawn/{drawn[0].name}", f"{store.url}/drawn/{drawn[1].name}"


class Job:
    """`jobs/train.py` on the generated set, with its output in a file."""

    def __init__(self, folder: Path, pairs: tuple[object, object], name: str, *flags: object, runs: str = "") -> None:
        runs = runs or str(folder / "runs")
        self.run = f"{runs}/{name}"
        self._log = folder / f"{name}.log"
        command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--images", pairs[0], "--masks", pairs[1]]
        command += ["--storage", runs, "--name", name, "--image-size", 64, 64, "--val-count", 7, *flags]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=log, stderr=log)

    def output(self) -> str:
        return self._log.read_text()

    def epochs(self) -> int:
        return len(self.metrics())

    def metrics(self) -> list[dict[str, Any]]:
        return run_folder.read_metrics(self.run)

    def wait_until(self, happened: Callable[[], object], limit_s: float = 120) -> None:
        deadline = time.monotonic() + limit_s
        while not happened():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def end(self) -> None:
        assert self.process.wait(240) == 0, self.output()


def last_weights(run: str) -> dict[str, torch.Tensor]:
    """Return the averaged and the raw weights of the last checkpoint."""
    last = checkpoint.last(run)
    assert last is not None
    raw_weights = checkpoint.load_train_state(last).raw_weights
    assert raw_weights is not None
    return checkpoint.load_model(last).state_dict() | {f"moved.{name}": tensor for name, tensor in raw_weights.items()}


@pytest.mark.slow
@pytest.mark.ray
def test_train_killed_and_resumed_weights_equal_an_undisturbed_run(drawn: tuple[Path, Path], tmp_path: Path) -> None:
    """First a worker is killed, and the run continues by itself. Then the driver is killed and --resume continues."""
    flags = ("--epochs", 7, "--batch-size", 2, "--num-workers", 2, "--cpus-per-worker", 1, "--precision", "fp32")
    whole = Job(tmp_path, drawn, "whole", *flags)
    whole.end()

    job = Job(tmp_path, drawn, "killed", *flags)
    job.wait_until(lambda: job.epochs() >= 1)
    os.kill(kill_predict.matching(os.getpid(), TRAIN_WORKER)[0], signal.SIGKILL)
    job.wait_until(lambda: "a worker has died" in job.output())  # the other worker may have finished an epoch meanwhile
    before = job.epochs()
    job.wait_until(lambda: job.epochs() > before)
    job.process.kill()
    job.process.wait()
    at_kill = job.epochs()
    assert 1 < at_kill < 7

    again = Job(tmp_path, drawn, "killed", "--resume")
    again.end()
    assert again.epochs() == 7
    expected, found = last_weights(whole.run), last_weights(job.run)
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    losses = [[epoch["train_loss"] for epoch in each.metrics()] for each in (whole, job)]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.own_ray
def test_train_preempted_node_saves_and_continues_with_one_worker(
    cluster: Any, pairs: tuple[str, str], prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EC2's notice reaches the run as on AWS: from the metadata service, through the node's watcher and Ray."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    nodes = [cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)]
    workers = ("--num-workers", 1, 2, "--cpus-per-worker", 2)
    with ec2_metadata.serve() as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.address)
        watcher = subprocess.Popen([sys.executable, "-m", "petseg.cluster.spot"], stdout=subprocess.PIPE, text=True)
        job = Job(tmp_path, pairs, "run", *workers, "--batch-size", 2, "--epochs", 8, runs=prefix)
        job.wait_until(lambda: job.epochs() >= 1)
        assert watcher.poll() is None and metadata.polls
        metadata.interrupt()
        job.wait_until(lambda: checkpoints_within_an_epoch(job.run))
    log, _ = watcher.communicate(timeout=30)
    lost = nodes[1]  # the newest one on this machine
    assert watcher.returncode == 0 and f"node {lost.node_id} is draining" in log
    os.kill(lost.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    job.end()
    assert "a worker has died" in job.output()
    assert [epoch["epoch"] for epoch in job.metrics()] == list(range(1, 9))
    assert checkpoints_within_an_epoch(job.run) == []  # replaced by the checkpoint at the epoch's end


def checkpoints_within_an_epoch(run: str) -> list[str]:
    """Return the complete checkpoints of a run that were saved within an epoch."""
    names = storage.list_files(f"{run}/checkpoints")
    return [name for name in names if re.fullmatch(r"epoch-\d+-step-\d+/metrics.json", name)]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.own_ray
def test_train_lost_node_is_waited_for_and_replaced(
    cluster: Any, drawn: tuple[Path, Path], pairs: tuple[str, str], prefix: str, tmp_path: Path
) -> None:
    """Two workers on two nodes, without a notice. Then the driver is killed too. All that remains is in the store."""
    both = [cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)]
    flags = ("--num-workers", 2, "--cpus-per-worker", 2, "--batch-size", 2, "--epochs", 7)
    on_a_disk = Job(tmp_path, drawn, "refused", *flags)
    assert on_a_disk.process.wait(120) == 2
    [line] = on_a_disk.output().splitlines()[-1:]
    assert line.startswith(
        f"error: --storage {on_a_disk.run}: on the disk of one machine, and this cluster has several"
    )
    assert not Path(on_a_disk.run).exists()

    job = Job(tmp_path, pairs, "run", *flags, runs=prefix)
    job.wait_until(lambda: job.epochs() >= 1)
    os.kill(both[1].all_processes["raylet"][0].process.pid, signal.SIGKILL)
    job.wait_until(lambda: "waiting for 2 × 2 CPUs, have 1" in job.output())
    cluster.add_node(num_cpus=2)
    before = job.epochs()
    job.wait_until(lambda: job.epochs() > before)
    assert "a worker has died" in job.output() and "waiting for 2 × 2 CPUs, have 2" in job.output()
    job.process.kill()
    job.process.wait()
    assert job.epochs() < 7
    Job(tmp_path, pairs, "run", "--resume", runs=prefix).end()
    assert [epoch["epoch"] for epoch in job.metrics()] == list(range(1, 8))
    assert "going on after epoch" in job.output()
