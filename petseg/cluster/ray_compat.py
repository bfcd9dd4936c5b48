"""Wrap the private parts of Ray that petseg uses. No other module of petseg imports them.

tests/integration/test_ray_compat.py fails if a version of Ray removes or changes one of them. To use another version,
change the pin in pyproject.toml, run that file, and fix here what fails.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray._common import utils
from ray._private import services, state, worker
from ray._private.services import psutil  # pyright: ignore[reportPrivateImportUsage] - Ray's own copy
from ray._raylet import Config, GcsClient  # pyright: ignore[reportAttributeAccessIssue] - compiled
from ray.core.generated import gcs_pb2
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # pyright: ignore[reportAttributeAccessIssue]

from petseg.errors import JobError

IDLE_WORKER_CONFIG = {"idle_worker_killing_time_threshold_ms": 60_000}
"""System configuration of a local Ray: end an idle worker process after 60 s instead of 1 s.

With Ray's default, a worker process ends after one idle second if all cores are busy. A new process spends a core's
second on imports. Shards are written about every two seconds, so each would need a new process.
"""

_DRAIN_S = 10
"""Maximum seconds until the answer to a request to drain a node."""


def find_address() -> str | None:
    """Return host:port of the cluster that `ray.init()` would join, or None if it would start a local Ray.

    Raises `ValueError` or `socket.gaierror` if RAY_ADDRESS is not an address.
    """
    # ray.init() passes None, too. With "auto", Ray would also join a cluster that an unrelated job has started.
    return services.canonicalize_bootstrap_address(None)  # pyright: ignore[reportArgumentType]


def temporary_folder() -> str:
    """Return the folder in which a local Ray makes a folder for each session."""
    return utils.get_default_ray_temp_dir()


def parse_version_mismatch(error: RuntimeError) -> list[str] | None:
    """Return the versions in Ray's "Version mismatch" error, or None for any other error.

    The order is: the cluster's Ray, the cluster's Python, this process's Ray, this process's Python.
    """
    if "Version mismatch" not in str(error):
        return None
    return re.findall(r"(?:Ray|Python): (\S+)", str(error))


def started_local_ray() -> bool:
    """Return True if this process started a local Ray. A local Ray has exactly one node."""
    return worker._global_node is not None and worker._global_node.head


def log_folder() -> Path | None:
    """Return the folder of Ray's logs on this machine; None if this process has not joined a Ray."""
    return None if worker._global_node is None else Path(worker._global_node.get_logs_dir_path())


def local_node(address: str) -> tuple[int, str] | None:
    """Return (process id, node id) of the newest node on this machine that joined the cluster at `address`, or None."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        words = process.info["cmdline"]
        if services._is_raylet_process(words) and f"--gcs-address={address}" in words:
            [node_id] = [word.removeprefix("--node_id=") for word in words if word.startswith("--node_id=")]
            found.append((process.info["create_time"], process.pid, node_id))
    return max(found)[1:] if found else None


def drain_node(address: str, node_id: str, reason: str, end_s: float) -> None:
    """Tell the cluster at `address` that a node will be taken away at the Unix time `end_s`. It gets no more tasks.

    Ray Train reports this to the workers of that node's training run. Raises `JobError` if the cluster does not answer
    or rejects the request.
    """
    preemption = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    try:
        client = GcsClient(address=address)
        accepted, why = client.drain_node(node_id, preemption, reason, int(end_s * 1000), timeout=_DRAIN_S)
    except ray.exceptions.RayError as error:
        raise JobError(f"the Ray at {address} does not answer ({error})") from error
    if not accepted:
        raise JobError(f"the Ray at {address} rejects it ({why})")


def replace_worker_log_printer(show: Callable[[str], None]) -> None:
    """Call `show` with each line of the workers' logs, instead of printing the line."""

    def print_lines(data: dict[str, Any], *_: object, **__: object) -> None:
        for line in data.get("lines", ()):
            show(line)

    worker.print_worker_logs = print_lines


@dataclass(frozen=True)
class MemoryKill:
    """A process that Ray ended because its machine's memory was full."""

    ip: str
    """Address of the machine."""
    used_gib: float
    limit_gib: float
    process_gib: float
    """Memory of the process itself."""


def parse_memory_kill(text: str, worker_id: str = "") -> MemoryKill | None:
    """Return the kill that a log line or an error of Ray describes, or None for any other text.

    Ray may end several processes at once, and describes them in one text: of these, the largest is returned, or the one
    with `worker_id`.
    """
    node = re.search(r"low on memory\..* \(IP: ([^,]+),.*\) was ([\d.]+)GB used / ([\d.]+)GB limit", text)
    killed = re.findall(rf"Selected to kill: .*actual memory used=([\d.]+)GB, worker ID=\w*{worker_id}", text)
    if node is None or not killed:
        return None
    return MemoryKill(node[1], float(node[2]), float(node[3]), max(map(float, killed)))


def actor_memory_kills() -> dict[str, list[MemoryKill]]:
    """Return the kills of each actor of this job for memory, oldest first. The keys are the actors' IDs.

    Ray ends the calls of such an actor with an error that does not tell the cause. The cluster's table of worker
    processes does.
    """
    rows = state.state._connect_and_get_accessor().get_worker_table()
    workers = [gcs_pb2.WorkerTableData.FromString(row) for row in rows]  # pyright: ignore[reportAttributeAccessIssue]
    job = ray.get_runtime_context().get_job_id()
    kills: dict[str, list[MemoryKill]] = {}
    for worker_data in sorted(workers, key=lambda each: each.timestamp):
        worker_id = worker_data.worker_address.worker_id.hex()
        actor = re.search(rf"\(Actor\((\w+)\): job ID={job}, .*worker ID={worker_id}", worker_data.exit_detail)
        kill = parse_memory_kill(worker_data.exit_detail, worker_id)
        if actor and kill:
            kills.setdefault(actor[1], []).append(kill)
    return kills


def limit_memory_retries(retries: int) -> None:
    """Repeat a task that Ray ended for memory at most this often. For the tasks of this process, which has joined Ray.

    This is a setting of the process that submits a task, so it also holds in a cluster with other settings.
    """
    Config.initialize(json.dumps({"task_oom_retries": retries}).encode())


def worker_failure_cause(failure: Exception) -> Exception:
    """Return the exception that a Ray Train worker raised, or the health-check error if the worker died.

    `failure` is a value of `WorkerGroupError.worker_failures`.
    """
    for wrapped in ("_base_exc", "health_check_failure"):
        failure = getattr(failure, wrapped, failure)
    return failure


def aws_node_provider() -> Any:
    """Return the class of Ray's autoscaler that starts nodes on AWS."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    return AWSNodeProvider


def warn_in_autoscaler_log(message: str, *values: object) -> None:
    """Print a warning as Ray's cluster launcher does, on the terminal or in the autoscaler's log."""
    from ray.autoscaler._private.cli_logger import cli_logger

    cli_logger.warning(message, *values)


def divert_native_stderr(name: str) -> None:
    """Redirect the stderr of native code to the file `name` in Ray's log folder. Python's stderr keeps its target.

    Ray's C++ code prints warnings to stderr at any log level. The user cannot act on them.
    """
    folder = log_folder()
    if folder is None or sys.stderr is not sys.__stderr__:  # a test has replaced stderr
        return
    # Give Python a copy of descriptor 2 before descriptor 2 is redirected.
    sys.stderr = sys.__stderr__ = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    folder.mkdir(parents=True, exist_ok=True)  # missing if the cluster keeps its logs elsewhere
    with (folder / name).open("ab") as file:
        os.dup2(file.fileno(), 2)
