"""Starting or joining Ray, what it has to give, and what it does not carry. Nothing here knows what that is for."""

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
from ray._private import services, worker  # Ray has no public words for what is asked of them
from ray.util.placement_group import placement_group, remove_placement_group

from petseg.errors import InputError, JobError, UnavailableError
from petseg.storage import checks

KEEP_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824:"
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.top_pad=67108864"
}
"""Environment of a process that has the network, which asks for the same large pieces of memory for each batch. By
default glibc gives them back and the system clears them anew each time, which cost a tenth of the time on a CPU; in
threads other than the first, where Ray runs what is ours, it does so whatever the thresholds are, unless all share one
arena; which then grows by 64 MB at a time."""

_PATIENCE = {"idle_worker_killing_time_threshold_ms": 60_000}
"""Of a local Ray: by default it ends a process that has had no task for a second, unless cores are idle, too, and
begins another (a second of a core, to import) for the next task. Writing a shard is such a task, every two seconds."""

_LOOK_S = 1.0
_TELL_S = 60.0
_REFUSAL = "petseg refusal"


def connect() -> None:
    """Join the cluster in RAY_ADDRESS or the one started on this machine, else start a local Ray without a dashboard.

    Raises `InputError` where the cluster to join does not answer or has another version, or its address is none.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    try:
        if "://" in given:  # Ray Client: a driver outside the cluster, which Ray Train does not support
            raise ValueError(given)
        # None, as ray.init() asks it: "auto" would also take a Ray that somebody's other job has started.
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
    # Ray's own lines and its workers' output would bury ours; errors reach the driver as exceptions.
    settings: dict[str, Any] = {"_system_config": _PATIENCE} if address is None else {}  # others' Ray has its own
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
    """Put Ctrl-C off: a Ray that is half started leaves processes behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _divert_lines_of_c() -> None:
    """Let what is not Python write its lines to Ray's log folder, and Python to the terminal as before.

    Ray's core warns on stderr, whatever the levels say, of things that nobody here can change.
    """
    node = worker._global_node
    if node is None or sys.stderr is not sys.__stderr__:  # in a test
        return
    sys.stderr = sys.__stderr__ = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    log = Path(node.get_logs_dir_path()) / f"petseg-{os.getpid()}.err"
    log.parent.mkdir(parents=True, exist_ok=True)  # of a cluster that keeps its own elsewhere
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)


def _tell_of_memory() -> Callable[..., None]:
    """What to call in place of Ray's own printing, which shows a page for each task that it tries again.

    Where memory is full it tries for ever, so that is told, once a minute; all else ends as an exception, if it ends.
    """
    told_s = -float("inf")

    def tell(data: dict[str, Any], *_: object, **__: object) -> None:
        nonlocal told_s
        for line in data.get("lines", ()):
            full = re.search(r"low on memory.* was (\S+) used / (\S+) limit", line)
            if full and time.monotonic() - told_s > _TELL_S:
                told_s = time.monotonic()
                print(
                    f"note: too little memory ({full[1]} of {full[2]} used), so Ray has stopped a process and tries "
                    "again; if nothing goes on, stop, and ask for less (--num-workers, --batch-size)",
                    file=sys.stderr,
                    flush=True,
                )

    return tell


def _other_version(address: str, mismatch: str) -> InputError:
    """`mismatch` is Ray's own page, with four lines such as "Ray: 2.60.0"; those of the cluster come first."""
    there_ray, there_python, here_ray, here_python = re.findall(r"(?:Ray|Python): (\S+)", mismatch)
    return InputError(
        f"the Ray at {address} has version {there_ray} on Python {there_python}, and this environment {here_ray} on "
        f"Python {here_python}; install the same here, hand the job over with `ray job submit`, or unset RAY_ADDRESS"
    )


def _answers(host: str, port: int) -> bool:
    """Whether anything listens there: Ray itself tries for four minutes, with a screen of warnings."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def quieten() -> None:
    """Keep what Ray's own libraries say off the terminal: their progress, and, unless --debug is given, the tracebacks
    that they show of what is raised as well.
    """
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR if "--debug" in sys.argv else logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False


def require_shared(places: Mapping[str, str]) -> None:
    """Raise `InputError`, naming the flag, where work may be done on other machines than this one and one of the places
    (absolute locations, by flag) is on this one's own disk.
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
    """What `work` makes, or, where storage does not answer, a table that says so, for `refusal` to find.

    An exception in a function that Ray Data calls becomes a screen of lines, in which the driver cannot find it.
    """
    try:
        return work()
    except UnavailableError as error:
        return pa.table({_REFUSAL: [str(error)]})


def refusal(table: pa.Table) -> str | None:
    """Why storage has not answered, where `table` is what `or_refusal` has made of that."""
    return table[_REFUSAL][0].as_py() if table.column_names == [_REFUSAL] else None


def total(resource: str) -> int:
    """How much of a resource ("CPU", "GPU") all living nodes have together."""
    return int(ray.cluster_resources().get(resource, 0))


def cpus_per_worker(num_workers: int) -> int:
    """The most cores that each of `num_workers` processes can have, if all have as many and none spans two nodes.

    At least 1, also where the nodes that have them are still to come.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    for cpus in range(max(nodes, default=1), 1, -1):
        if sum(node // cpus for node in nodes) >= num_workers:
            return cpus
    return 1


def capacity(bundle: dict[str, int]) -> int:
    """How many processes that need these resources the living nodes can hold, if no other job had any."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) // amount) for name, amount in bundle.items()) for node in nodes)


def require(bundle: dict[str, int], count: int, flags: str, limit_s: float | None = None) -> None:
    """See that the cluster can hold `count` processes that need these resources each, before Ray waits for it without a
    word.

    A local Ray cannot grow, so there `InputError`, naming `flags`, is raised. A cluster may: it is asked to, and waited
    for, which lines say; after `limit_s` comes `JobError`. Without a limit one line is all.
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
    # A group that cannot be placed is what an autoscaler sees and starts nodes for.
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
    """Whether `connect` started this Ray, so that it is one node for as long as it lives."""
    return worker._global_node is not None and worker._global_node.head
