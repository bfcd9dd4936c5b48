"""Everything that petseg takes from Ray without a public API: one function per use.

tests/integration/test_ray_compat.py fails when a name here, or what Ray does behind it, goes away. To use another
version of Ray, change the pin in pyproject.toml, run that file, and fix here what fails.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray._private import services, worker

IDLE_WORKER_CONFIG = {"idle_worker_killing_time_threshold_ms": 60_000}
"""System configuration of a local Ray: it ends an idle worker process after 60 s instead of 1 s.

By default Ray ends a process that has had no task for a second, unless cores are idle, too. The next task then needs a
new process, whose imports take a core one second. Writing a shard is such a task, every two seconds."""


def find_address() -> str | None:
    """Return host:port of the cluster that `ray.init()` would join, or None if it would start a local Ray.

    Raises `ValueError` or `socket.gaierror` if RAY_ADDRESS is not an address.
    """
    # None, as in ray.init(): "auto" would also join a Ray that an unrelated job has started.
    return services.canonicalize_bootstrap_address(None)  # pyright: ignore[reportArgumentType]


def versions_of_mismatch(error: RuntimeError) -> list[str] | None:
    """Return the versions in Ray's message about a cluster with other versions; None for another error.

    They are those of the cluster's Ray and Python, and then those of this process.
    """
    if "Version mismatch" not in str(error):
        return None
    return re.findall(r"(?:Ray|Python): (\S+)", str(error))


def started_local_ray() -> bool:
    """Return True if this process started the Ray it uses, which then never has more than one node."""
    return worker._global_node is not None and worker._global_node.head


def log_folder() -> Path | None:
    """Return the folder of Ray's logs on this machine; None if this process has not joined a Ray."""
    return None if worker._global_node is None else Path(worker._global_node.get_logs_dir_path())


def replace_worker_log_printer(show: Callable[[str], None]) -> None:
    """Pass the lines that Ray would print of its workers to `show`, one at a time, instead of printing them."""

    def print_lines(data: dict[str, Any], *_: object, **__: object) -> None:
        for line in data.get("lines", ()):
            show(line)

    worker.print_worker_logs = print_lines


def memory_in_log_line(line: str) -> tuple[str, str] | None:
    """Return (memory used, limit) if the line says that Ray ended a process because a node ran out of memory."""
    match = re.search(r"low on memory.* was (\S+) used / (\S+) limit", line)
    return (match[1], match[2]) if match else None


def worker_failure_cause(failure: Exception) -> Exception:
    """Return what a Ray Train worker raised, or how it died. `failure` is from `WorkerGroupError.worker_failures`."""
    for wrapped in ("_base_exc", "health_check_failure"):
        failure = getattr(failure, wrapped, failure)
    return failure


def aws_node_provider() -> Any:
    """Return the class with which Ray's autoscaler starts nodes on AWS."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    return AWSNodeProvider


def warn_in_autoscaler_log(message: str, *values: object) -> None:
    """Print a warning as Ray's cluster launcher does, on the terminal or in the autoscaler's log."""
    from ray.autoscaler._private.cli_logger import cli_logger

    cli_logger.warning(message, *values)


def divert_native_stderr(name: str) -> None:
    """Redirect stderr of native code to a file in Ray's log folder. Python's own stderr stays on the terminal.

    Ray's core prints warnings to stderr at any log level, about things that the user cannot change.
    """
    folder = log_folder()
    if folder is None or sys.stderr is not sys.__stderr__:  # a test has replaced stderr
        return
    sys.stderr = sys.__stderr__ = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    folder.mkdir(parents=True, exist_ok=True)  # missing if the cluster keeps its logs elsewhere
    with (folder / name).open("ab") as file:
        os.dup2(file.fileno(), 2)
