"""Query what the cluster has, wait until it has enough, and divide its cores. Knows nothing of the jobs."""

import time
from collections.abc import Callable, Mapping

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from petseg.cluster import ray_compat
from petseg.errors import InputError, JobError
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

_POLL_S = 1.0
"""Seconds between two queries of the cluster's size while waiting for it."""


def require_shared(locations: Mapping[str, str]) -> None:
    """Raise `InputError`, naming the flag, if other machines may do work but cannot reach one of `locations`.

    `locations` maps flags to absolute locations. Other machines cannot reach a location on this machine's own disk.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 and total("CPU"):
        return
    for flag, location in locations.items():
        if checks.is_own_disk(location):
            raise InputError(
                f"{flag} {location}: on the disk of one machine, and this cluster has several; give a location that "
                "all of them can reach, such as s3://bucket/prefix or a folder on a network file system"
            )


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


def require(
    bundle: dict[str, int],
    count: int,
    flags: str,
    limit_s: float | None = None,
    on_wait: Callable[[int], None] = lambda missing: None,
) -> None:
    """Wait until the cluster can hold `count` processes with the resources `bundle` each.

    Without this check Ray would wait silently. A local Ray cannot grow, so the function raises `InputError`, naming
    `flags`. A cluster may grow: the function requests nodes, prints how many processes fit, and raises `JobError` after
    `limit_s` seconds. Meanwhile it calls `on_wait` with the number of processes that do not fit yet, and with 0 at the
    end. Without a limit it only prints one line and returns.
    """
    have, wanted = capacity(bundle), _describe(bundle, count)
    if count <= have:
        return
    if ray_compat.started_local_ray():
        if "GPU" in bundle and not total("GPU"):
            raise InputError(
                "--use-gpu: Ray finds no GPU on this machine; leave it out, or join a cluster that has one with "
                "RAY_ADDRESS"
            )
        raise InputError(
            f"{flags} asks for {wanted}, but this machine has {have}; ask for fewer, or join a cluster with RAY_ADDRESS"
        )
    print(f"waiting for {wanted}, have {have}; the cluster must grow", flush=True)
    if limit_s is not None:
        _wait(bundle, count, flags, limit_s, on_wait)


def _wait(bundle: dict[str, int], count: int, flags: str, limit_s: float, on_wait: Callable[[int], None]) -> None:
    have, wanted = capacity(bundle), _describe(bundle, count)
    # The autoscaler sees the pending placement group and starts nodes for it.
    group = placement_group([{name: float(amount) for name, amount in bundle.items()}] * count)
    deadline = time.monotonic() + limit_s
    on_wait(count - have)
    try:
        while count > have:
            if time.monotonic() > deadline:
                raise JobError(
                    f"{flags} asks for {wanted}, and after {limit_s / 60:g} minutes the cluster has {have}; ask for "
                    "fewer, add nodes, or wait longer with --wait-min"
                )
            time.sleep(_POLL_S)
            before, have = have, capacity(bundle)
            if have != before:
                on_wait(max(0, count - have))
                print(f"waiting for {wanted}, have {have}", flush=True)
    finally:
        on_wait(0)
        remove_placement_group(group)


def _describe(bundle: dict[str, int], count: int) -> str:
    """Return text such as "4 CPUs", or "2 × 1 GPU and 4 CPUs"."""
    single = max(bundle.values()) == 1
    names = [f"{name}s" if amount > 1 or (single and count > 1) else name for name, amount in bundle.items()]
    if single:
        return f"{count} {' and '.join(names)}"
    each = [f"{amount} {name}" for amount, name in zip(bundle.values(), names, strict=True)]
    return f"{count} × {' and '.join(each)}"
