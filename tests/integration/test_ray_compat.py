"""Contracts with Ray's private names. A test fails when Ray removes a name or changes its behaviour."""

import inspect
import io
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import click
import pytest
import ray
import ray.exceptions

from petseg.cluster import ray_compat
from petseg.errors import JobError


def test_find_address_equals_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6399")
    assert ray_compat.find_address() == "10.0.0.9:6399"
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        ray_compat.find_address()


def test_find_address_no_ray_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_compat.services, "find_gcs_addresses", set)
    monkeypatch.setattr(ray_compat.services, "find_bootstrap_address", lambda _: None)
    assert ray_compat.find_address() is None


def test_versions_of_mismatch_ray_message_has_four_versions() -> None:
    import platform

    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.40.0", "python_version": "3.12.1"}, "node 10.0.0.1")
    found = ray_compat.parse_version_mismatch(caught.value)
    assert found == ["2.40.0", "3.12.1", ray.__version__, platform.python_version()]
    assert ray_compat.parse_version_mismatch(RuntimeError("Ray: 1.0")) is None


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_started_local_ray_is_true_and_has_a_log_folder() -> None:
    assert ray_compat.started_local_ray()
    folder = ray_compat.log_folder()
    assert folder is not None and (folder / "raylet.out").exists()


def test_log_folder_without_ray_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_compat.worker, "_global_node", None)
    assert ray_compat.log_folder() is None and not ray_compat.started_local_ray()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_local_node_is_the_node_of_that_cluster() -> None:
    context = ray.get_runtime_context()
    found = ray_compat.local_node(context.gcs_address)
    assert found is not None and found[1] == context.get_node_id()
    assert b"/raylet" in Path(f"/proc/{found[0]}/cmdline").read_bytes().split(b"\0")[0]
    assert ray_compat.local_node("127.0.0.1:1") is None


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_drain_node_other_nodes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray accepts the request for a node that is gone. tests/integration/test_submit.py drains a real one."""
    address = ray.get_runtime_context().gcs_address
    ray_compat.drain_node(address, "f0" * 28, "a test", time.time() + 60)
    assert [node["Alive"] for node in ray.nodes()] == [True]
    refused = Mock(return_value=Mock(drain_node=Mock(return_value=(False, "busy"))))
    monkeypatch.setattr(ray_compat, "GcsClient", refused)
    with pytest.raises(JobError, match=r"the Ray at .* rejects it \(busy\)"):
        ray_compat.drain_node(address, "f0" * 28, "a test", time.time() + 60)


def test_drain_node_no_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_compat, "GcsClient", Mock(side_effect=ray.exceptions.RpcError("timed out")))
    with pytest.raises(JobError, match=r"the Ray at 127\.0\.0\.1:1 does not answer \(timed out\)"):
        ray_compat.drain_node("127.0.0.1:1", "f0" * 28, "a test", time.time() + 60)


def test_replace_worker_log_printer_lines_reach_the_replacement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(ray_compat.worker.print_worker_logs)
    monkeypatch.setattr(ray_compat.worker, "print_worker_logs", ray_compat.worker.print_worker_logs)  # restored later
    shown: list[str] = []
    ray_compat.replace_worker_log_printer(shown.append)
    logged = {"lines": ["one", "two"], "pid": "autoscaler", "is_err": True, "ip": "10.0.0.1"}
    ray_compat.worker.print_to_stdstream(logged, ignore_prefix=False)
    assert shown == ["one", "two"]
    assert capsys.readouterr() == ("", "")


FULL_MEMORY = """
import time
import ray
from petseg.cluster import connect, memory
from petseg.errors import JobError

connect._require_workers = lambda: None
memory._LOOK_EVERY_S = 0.2
connect.connect()

@ray.remote
def task():
    time.sleep(60)

@ray.remote(max_restarts=-1, max_task_retries=-1)
class Actor:
    def work(self):
        time.sleep(60)

for guard, work in (
    (memory.translate_out_of_memory, lambda: ray.get(task.remote())),
    (memory.stop_if_out_of_memory, lambda: ray.get(Actor.remote().work.remote())),
):
    try:
        with guard("more memory"):
            work()
    except JobError as error:
        print(error)
"""


@pytest.mark.ray
@pytest.mark.own_ray
def test_full_memory_task_and_actor_end_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes the memory for full at once, and ends every process. Of an actor it restarts one after another."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    monkeypatch.setenv("RAY_task_oom_retry_delay_base_ms", "1")
    command = [sys.executable, "-c", FULL_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    usage = r"the process used \d\.\d GiB, and all of [\d.]+ [\d.]+ of [\d.]+ GiB"
    ended = rf"out of memory: Ray ended one task 3 times \(the last time, {usage}\); more memory\n"
    assert re.fullmatch(ended * 2, done.stdout), done.stderr
    assert re.fullmatch(rf"note: out of memory: .* \({usage}\); .*\n", done.stderr)


def test_idle_worker_setting_exists_in_ray() -> None:
    [name] = ray_compat.IDLE_WORKER_CONFIG
    raylet = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
    assert name.encode() in raylet.read_bytes()


def test_worker_failure_cause_is_the_wrapped_error() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    cause = ValueError("bad")
    assert ray_compat.worker_failure_cause(UserExceptionWithTraceback(cause, "Traceback …")) is cause
    assert ray_compat.worker_failure_cause(WorkerHealthCheckFailedError("dead", cause)) is cause
    assert ray_compat.worker_failure_cause(cause) is cause


def test_aws_node_provider_has_the_overridden_methods() -> None:
    provider = ray_compat.aws_node_provider()
    assert list(inspect.signature(provider.create_node).parameters) == ["self", "node_config", "tags", "count"]
    assert list(inspect.signature(provider.bootstrap_config).parameters) == ["cluster_config"]
    assert list(inspect.signature(provider.fillout_available_node_types_resources).parameters) == ["cluster_config"]


def test_warn_in_autoscaler_log_warning_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    ray_compat.warn_in_autoscaler_log("no spot instances for {} of {} nodes", 1, 2)
    assert "no spot instances for 1 of 2 nodes" in click.unstyle(capsys.readouterr().out)


def test_divert_native_stderr_replaced_stderr_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = io.StringIO()
    monkeypatch.setattr(sys, "stderr", replaced)
    ray_compat.divert_native_stderr("petseg.err")
    assert sys.stderr is replaced
