import signal
import sys
from typing import Any

import pyarrow as pa
import pytest

from petseg.cluster import connect
from petseg.errors import InputError, JobError, UnavailableError
from petseg.storage import checks


def nodes(*cpus: int, alive: bool = True) -> list[dict[str, Any]]:
    return [{"Alive": alive, "Resources": {"CPU": float(count)}} for count in cpus]


@pytest.mark.parametrize(
    ("found", "num_workers", "expected"),
    [
        (nodes(8), 1, 8),
        (nodes(8), 3, 2),
        (nodes(4, 4), 1, 4),
        (nodes(5, 5), 3, 2),  # 3 each would be 9 of 10, but only one fits on a node
        (nodes(2), 4, 1),
        ([], 1, 1),
        (nodes(4) + nodes(64, alive=False), 1, 4),
        ([{"Alive": True, "Resources": {}}], 2, 1),
    ],
)
def test_cores_are_shared_so_that_every_worker_fits_on_a_node(
    found: list[dict[str, Any]], num_workers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect.ray, "nodes", lambda: found)
    assert connect.cpus_per_worker(num_workers) == expected


@pytest.mark.parametrize(
    ("bundle", "expected"),
    [({"CPU": 1}, 9), ({"CPU": 4}, 2), ({"CPU": 8}, 0), ({"GPU": 1, "CPU": 2}, 2), ({"GPU": 1, "CPU": 4}, 1)],
)
def test_what_a_node_cannot_hold_is_not_put_together_from_two(
    bundle: dict[str, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = nodes(5, 4) + nodes(64, alive=False)
    found[1]["Resources"]["GPU"] = 2.0
    monkeypatch.setattr(connect.ray, "nodes", lambda: found)
    assert connect.capacity(bundle) == expected


def test_where_no_ray_is_found_one_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def init(**settings: object) -> None:
        signal.raise_signal(signal.SIGINT)  # put off until all of Ray is there to be ended
        started.append(settings)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connect.services, "find_gcs_addresses", set)
    monkeypatch.setattr(connect.services, "find_bootstrap_address", lambda _: None)
    monkeypatch.setattr(connect.ray, "init", init)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            connect.connect()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 1 and "address" not in started[0]


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:abc", "ray://127.0.0.1:10001"])
def test_an_address_that_is_none_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"RAY_ADDRESS {address}: a cluster's host:port is expected"):
        connect.connect()


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.40.0
    Python: 3.12.1
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


def test_a_cluster_of_another_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: object) -> None:
        raise RuntimeError(MISMATCH)

    address = "10.0.0.9:6379"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(connect, "_answers", lambda host, port: True)
    monkeypatch.setattr(connect.ray, "init", init)
    with pytest.raises(InputError) as caught:
        connect.connect()
    assert str(caught.value).startswith(
        f"the Ray at {address} has version 2.40.0 on Python 3.12.1, and this environment 2.60.0 on Python 3.11.7; "
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", [None, "10.0.0.9:6379"])
def test_a_local_ray_keeps_processes_that_are_idle_for_a_moment(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a Ray of others is not told how long: it would refuse."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(connect.services, "canonicalize_bootstrap_address", lambda _: address)
    monkeypatch.setattr(connect, "_answers", lambda host, port: True)
    monkeypatch.setattr(connect.ray, "init", lambda **settings: asked.update(settings))
    monkeypatch.setattr(connect, "_divert_lines_of_c", lambda: None)
    monkeypatch.setattr(connect, "quieten", lambda: None)
    monkeypatch.setattr(connect.worker, "print_worker_logs", None)
    connect.connect()
    patience = asked.get("_system_config", {}).get("idle_worker_killing_time_threshold_ms", 0)
    assert patience >= 10_000 if address is None else "_system_config" not in asked


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_more_than_this_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    connect.require({"CPU": 1}, 4, "--num-workers")
    with pytest.raises(InputError, match="--num-workers asks for 5 CPUs, but this machine has 4"):
        connect.require({"CPU": 1}, 5, "--num-workers")
    monkeypatch.setattr(connect, "total", lambda resource: 0)
    with pytest.raises(
        InputError, match=r"^--use-gpu: Ray finds no GPU on this machine; leave it out, or join a cluster"
    ):
        connect.require({"GPU": 1, "CPU": 1}, 1, "--num-workers")
    monkeypatch.setattr(connect, "total", lambda resource: 8)
    with pytest.raises(InputError, match="--num-workers asks for 99 GPUs, but this machine has"):
        connect.require({"GPU": 1}, 99, "--num-workers")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_cluster_that_may_grow_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connect, "_started_here", lambda: False)
    connect.require({"GPU": 1}, 99, "--use-gpu")
    assert capsys.readouterr().out.startswith("waiting for 99 GPUs, have ")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_waiting_for_a_cluster_has_a_limit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(connect, "_started_here", lambda: False)
    monkeypatch.setattr(connect, "_LOOK_S", 0.05)
    with pytest.raises(JobError, match=r"--use-gpu asks for 4 GPUs, and after 0\.005 minutes the cluster has 0; ask"):
        connect.require({"GPU": 1}, 4, "--use-gpu", limit_s=0.3)
    assert capsys.readouterr().out.startswith("waiting for 4 GPUs, have 0")
    cpus = iter([4, 4, 6, 9])  # as nodes come
    monkeypatch.setattr(connect, "capacity", lambda bundle: next(cpus))
    connect.require({"CPU": 1}, 9, "--num-workers", limit_s=60)
    assert capsys.readouterr().out.splitlines()[1:] == ["waiting for 9 CPUs, have 6", "waiting for 9 CPUs, have 9"]


@pytest.mark.parametrize(
    ("found", "cpus", "refused"),
    [(nodes(4), 4, False), (nodes(4, 4), 8, True), (nodes(0), 0, True), (nodes(4) + nodes(4, alive=False), 4, False)],
)
def test_a_place_on_one_disk_is_refused_where_work_is_done_on_others(
    found: list[dict[str, Any]], cpus: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several nodes; or none with cores yet, so that those with the cores are still to come."""
    monkeypatch.setattr(connect.ray, "nodes", lambda: found)
    monkeypatch.setattr(connect.ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    monkeypatch.setattr(checks, "is_own_disk", lambda location: not location.startswith(("s3://", "/network")))
    connect.require_shared({"--storage": "s3://bucket/runs", "--images": "/network/photos"})
    if not refused:
        connect.require_shared({"--storage": "/runs"})
        return
    with pytest.raises(
        InputError, match=r"^--storage /runs: on the disk of one machine, .* such as s3://bucket/prefix"
    ):
        connect.require_shared({"--images": "s3://bucket/photos", "--storage": "/runs"})


def test_a_store_that_does_not_answer_is_told_as_a_table() -> None:
    def fail() -> pa.Table:
        raise UnavailableError("s3://bucket/a: no answer")

    table = pa.table({"id": ["a"]})
    assert connect.or_refusal(lambda: table) is table and connect.refusal(table) is None
    assert connect.refusal(connect.or_refusal(fail)) == "s3://bucket/a: no answer"


def test_of_all_that_ray_prints_full_memory_alone_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(connect.worker.print_worker_logs)  # Ray's own, whose place it takes
    tell = connect._tell_of_memory()
    tell({"lines": ["Task _map_task failed. There are infinite retries remaining"], "pid": "raylet"}, sys.stdout, False)
    memory = (
        "Error: 1 worker(s) were killed due to the node running low on memory. Memory on the node was 3.75GB used / "
    )
    tell({"lines": [f"{memory}23.54GB limit (0.159)\nOOM kill reason: …"], "pid": "raylet"}, sys.stdout, False)
    tell({"lines": [f"{memory}23.54GB limit (0.159)"], "pid": "raylet"}, sys.stdout, False)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith(
        "note: too little memory (3.75GB of 23.54GB used), so Ray has stopped a process and tries"
    )
