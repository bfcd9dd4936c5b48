"""Start or join Ray, query its resources, and pass storage errors through Ray Data. Knows nothing of the jobs."""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray._private import services, worker  # Ray has no public API for these uses
from ray.util.placement_group import placement_group, remove_placement_group

from petseg.errors import InputError, JobError, UnavailableError
from petseg.storage import checks

KEEP_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824:"
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.top_pad=67108864"
}
"""Environment variables of a process that runs the network. They make glibc keep freed memory.

The network allocates the same large blocks for each batch. By default glibc returns them to the system, which clears
them again each time; that cost a tenth of the time on a CPU. Ray runs our code in threads other than the first. There
glibc returns memory whatever the thresholds are, unless all threads share one arena. That arena grows by 64 MiB at a
time."""

_PATIENCE = {"idle_worker_killing_time_threshold_ms": 60_000}
"""System configuration of a local Ray: it ends an idle worker process after 60 s instead of 1 s.

By default Ray ends a process that has had no task for a second, unless cores are idle, too. The next task then needs a
new process, whose imports take a core one second. Writing a shard is such a task, every two seconds."""

_LOOK_S = 1.0
"""Seconds between two queries of the cluster's size while waiting for it."""

_TELL_S = 60.0
"""Minimum seconds between two notes about full memory."""

_REFUSAL = "petseg refusal"
"""Column name that marks a table which carries a storage error instead of data."""


def connect() -> None:
    """Join the cluster in RAY_ADDRESS or the one started on this machine, else start a local Ray without a dashboard.

    Raises `InputError` if the address is invalid, or if the cluster does not answer or has another version.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    try:
        if "://" in given:  # Ray Client: Ray Train does not support a driver outside the cluster
            raise ValueError(given)
        # None, as in ray.init(): "auto" would also join a Ray that an unrelated job has started.
        address = services.canonicalize_bootstrap_address(None)  # pyright: ignore[reportArgumentType]
        host, _, port = (address or "").rpartition(":")
        answers = address is None or _answers(host, int(port))
    except (ValueError, socket.gaierror) as error:
        raise InputError(
            f"RAY_ADDRESS {given}: a cluster's host:port is expected; from outside it, use `ray job submit`"
        ) from error
    if not answers:
        raise InputError(
            f"no Ray answers at {given or address}; start it there, or unset RAY_ADDRESS (and run `ray stop` where "
            "one has crashed) to start a local one"
        )
    # Logs of Ray and its workers would bury our output. Errors still reach the driver as exceptions.
    settings: dict[str, Any] = (
        {"_system_config": _PATIENCE} if address is None else {}
    )  # a Ray that runs already has its own settings
    try:
        with _uninterrupted() if address is None else contextlib.nullcontext():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise _other_version(given or str(address), str(error)) from error
    _divert_lines_of_c()
    if "--debug" not in sys.argv:
        worker.print_worker_logs = _tell_of_memory()
    quieten()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the end of the `with` block, because a partly started Ray leaves processes behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _divert_lines_of_c() -> None:
    """Redirect stderr of native code to a file in Ray's log folder. Python's own stderr stays on the terminal.

    Ray's core prints warnings to stderr at any log level, about things that the user cannot change.
    """
    node = worker._global_node
    if node is None or sys.stderr is not sys.__stderr__:  # a test has replaced stderr
        return
    sys.stderr = sys.__stderr__ = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    log = Path(node.get_logs_dir_path()) / f"petseg-{os.getpid()}.err"
    log.parent.mkdir(parents=True, exist_ok=True)  # missing if the cluster keeps its logs elsewhere
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)


def _tell_of_memory() -> Callable[..., None]:
    """Return a replacement for the function with which Ray prints worker logs, a page for each retried task.

    The replacement prints a note about full memory, at most once a minute, because Ray then retries forever. It drops
    all other lines, since other failures either pass or reach the driver as exceptions.
    """
    last_note_s = -float("inf")

    def tell(data: dict[str, Any], *_: object, **__: object) -> None:
        nonlocal last_note_s
        for line in data.get("lines", ()):
            full = re.search(r"low on memory.* was (\S+) used / (\S+) limit", line)
            if full and time.monotonic() - last_note_s > _TELL_S:
                last_note_s = time.monotonic()
                print(
                    f"note: too little memory ({full[1]} of {full[2]} used), so Ray has stopped a process and tries "
                    "again; if nothing goes on, stop, and ask for less (--num-workers, --batch-size)",
                    file=sys.stderr,
                    flush=True,
                )

    return tell


def _other_version(address: str, mismatch: str) -> InputError:
    """Return the error for a cluster with other versions of Ray or Python.

    `mismatch` is Ray's message. It has four lines such as "Ray: 2.60.0", those of the cluster first.
    """
    there_ray, there_python, here_ray, here_python = re.findall(r"(?:Ray|Python): (\S+)", mismatch)
    return InputError(
        f"the Ray at {address} has version {there_ray} on Python {there_python}, and this environment {here_ray} on "
        f"Python {here_python}; install the same here, hand the job over with `ray job submit`, or unset RAY_ADDRESS"
    )


def _answers(host: str, port: int) -> bool:
    """Return True if a server listens at the address. Ray itself would try for four minutes, with many warnings."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def quieten() -> None:
    """Hide the progress bars and logs of Ray's libraries.

    Unless --debug is given, this also hides the tracebacks that they log for exceptions which reach the driver anyway.
    """
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR if "--debug" in sys.argv else logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False


def require_shared(places: Mapping[str, str]) -> None:
    """Raise `InputError`, naming the flag, if other machines may do work but cannot reach one of `places`.

    `places` maps flags to absolute locations. Other machines cannot reach a location on this machine's own disk.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 and total("CPU"):
        return
    for flag, location in places.items():
        if checks.is_own_disk(location):
            raise InputError(
                f"{flag} {location}: on the disk of one machine, and this cluster has several; give a place that all "
                "of them reach, such as s3://bucket/prefix or a folder on a network file system"
            )


def or_refusal(work: Callable[[], pa.Table]) -> pa.Table:
    """Return the table from `work`, or, if storage does not answer, a table that carries the error for `refusal`.

    Ray Data would turn an exception in a function that it calls into a long text from which the driver cannot recover
    it.
    """
    try:
        return work()
    except UnavailableError as error:
        return pa.table({_REFUSAL: [str(error)]})


def refusal(table: pa.Table) -> str | None:
    """Return the storage error in a table from `or_refusal`, or None if the table holds data."""
    return table[_REFUSAL][0].as_py() if table.column_names == [_REFUSAL] else None


def total(resource: str) -> int:
    """Return the total amount of a resource ("CPU", "GPU") of all living nodes."""
    return int(ray.cluster_resources().get(resource, 0))


def cpus_per_worker(num_workers: int) -> int:
    """Return the maximum number of cores per process for `num_workers` equal processes, each on a single node.

    The result is at least 1, even if the nodes for the processes have not joined yet.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    for cpus in range(max(nodes, default=1), 1, -1):
        if sum(node // cpus for node in nodes) >= num_workers:
            return cpus
    return 1


def capacity(bundle: dict[str, int]) -> int:
    """Return how many processes with these resources fit on the living nodes, ignoring what other jobs use."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) // amount) for name, amount in bundle.items()) for node in nodes)


def require(bundle: dict[str, int], count: int, flags: str, limit_s: float | None = None) -> None:
    """Wait until the cluster can hold `count` processes with the resources `bundle` each.

    Without this check Ray would wait silently. A local Ray cannot grow, so the function raises `InputError`, naming
    `flags`. A cluster may grow: the function requests nodes, prints how many processes fit, and raises `JobError` after
    `limit_s` seconds. Without a limit it only prints one line and returns.
    """
    have = capacity(bundle)
    if count <= have:
        return
    alone = max(bundle.values()) == 1
    names = [f"{name}s" if amount > 1 or (alone and count > 1) else name for name, amount in bundle.items()]
    each = " and ".join(names if alone else [f"{n} {name}" for n, name in zip(bundle.values(), names, strict=True)])
    wanted = f"{count} {each}" if alone else f"{count} × {each}"
    if _started_here():
        if "GPU" in bundle and not total("GPU"):
            raise InputError(
                "--use-gpu: Ray finds no GPU on this machine; leave it out, or join a cluster that has one with "
                "RAY_ADDRESS"
            )
        raise InputError(
            f"{flags} asks for {wanted}, but this machine has {have}; ask for fewer, or join a cluster with RAY_ADDRESS"
        )
    print(f"waiting for {wanted}, have {have}; the cluster must grow", flush=True)
    if limit_s is None:
        return
    # The autoscaler sees the pending placement group and starts nodes for it.
    group = placement_group([{name: float(amount) for name, amount in bundle.items()}] * count)
    deadline = time.monotonic() + limit_s
    try:
        while count > have:
            if time.monotonic() > deadline:
                raise JobError(
                    f"{flags} asks for {wanted}, and after {limit_s / 60:g} minutes the cluster has {have}; ask for "
                    "fewer, add nodes, or wait longer with --wait-min"
                )
            time.sleep(_LOOK_S)
            before, have = have, capacity(bundle)
            if have != before:
                print(f"waiting for {wanted}, have {have}", flush=True)
    finally:
        remove_placement_group(group)


def _started_here() -> bool:
    """Return True if `connect` started this Ray, which then never has more than one node."""
    return worker._global_node is not None and worker._global_node.head
