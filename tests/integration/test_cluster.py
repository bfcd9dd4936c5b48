import os
import signal
from pathlib import Path

import pytest
import ray

from petseg.cluster import connect, ray_compat, resources
from petseg.errors import InputError, JobError


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_require_more_than_this_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resources.require({"CPU": 1}, 4, "--num-workers")
    with pytest.raises(InputError, match="--num-workers asks for 5 CPUs, but this machine has 4"):
        resources.require({"CPU": 1}, 5, "--num-workers")
    monkeypatch.setattr(resources, "total", lambda resource: 0)
    with pytest.raises(
        InputError, match=r"^--use-gpu: Ray finds no GPU on this machine; leave it out, or join a cluster"
    ):
        resources.require({"GPU": 1, "CPU": 1}, 1, "--num-workers")
    monkeypatch.setattr(resources, "total", lambda resource: 8)
    with pytest.raises(InputError, match="--num-workers asks for 99 GPUs, but this machine has"):
        resources.require({"GPU": 1}, 99, "--num-workers")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_require_growing_cluster_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_compat, "started_local_ray", lambda: False)
    resources.require({"GPU": 1}, 99, "--use-gpu")
    assert capsys.readouterr().out.startswith("waiting for 99 GPUs, have ")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_require_cluster_too_small_after_the_limit_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_compat, "started_local_ray", lambda: False)
    monkeypatch.setattr(resources, "_POLL_S", 0.05)
    missing: list[int] = []
    with pytest.raises(JobError, match=r"--use-gpu asks for 4 GPUs, and after 0\.005 minutes the cluster has 0; ask"):
        resources.require({"GPU": 1}, 4, "--use-gpu", limit_s=0.3, on_wait=missing.append)
    assert missing == [4, 0]
    assert capsys.readouterr().out.startswith("waiting for 4 GPUs, have 0")
    cpus = iter([4, 4, 6, 9])  # as nodes join
    monkeypatch.setattr(resources, "capacity", lambda bundle: next(cpus))
    resources.require({"CPU": 1}, 9, "--num-workers", limit_s=60, on_wait=missing.append)
    assert missing[2:] == [5, 3, 0, 0]
    assert capsys.readouterr().out.splitlines()[1:] == ["waiting for 9 CPUs, have 6", "waiting for 9 CPUs, have 9"]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_require_workers_worker_that_is_killed_once_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    marker = tmp_path / "killed"

    def be_killed_once() -> None:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    settings = connect._import_package._default_options  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(connect, "_import_package", ray.remote(**settings)(be_killed_once))
    connect._require_workers()
    assert marker.exists()
