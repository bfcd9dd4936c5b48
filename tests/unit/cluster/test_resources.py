from typing import Any

import pytest

from petseg.cluster import resources
from petseg.errors import InputError
from petseg.storage import checks


def nodes(*cpus: int, alive: bool = True) -> list[dict[str, Any]]:
    return [{"Alive": alive, "Resources": {"CPU": float(count)}} for count in cpus]


@pytest.mark.parametrize(
    ("found", "num_workers", "expected"),
    [
        (nodes(8), 1, 8),
        (nodes(8), 3, 2),
        (nodes(4, 4), 1, 4),
        (nodes(5, 5), 3, 2),  # with 3 CPUs each, only one worker fits on a node
        (nodes(2), 4, 1),
        ([], 1, 1),
        (nodes(4) + nodes(64, alive=False), 1, 4),
        ([{"Alive": True, "Resources": {}}], 2, 1),
    ],
)
def test_cpus_per_worker_every_worker_fits_on_a_node(
    found: list[dict[str, Any]], num_workers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources.ray, "nodes", lambda: found)
    assert resources.cpus_per_worker(num_workers) == expected


@pytest.mark.parametrize(
    ("bundle", "expected"),
    [({"CPU": 1}, 9), ({"CPU": 4}, 2), ({"CPU": 8}, 0), ({"GPU": 1, "CPU": 2}, 2), ({"GPU": 1, "CPU": 4}, 1)],
)
def test_capacity_bundle_is_not_split_across_nodes(
    bundle: dict[str, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = nodes(5, 4) + nodes(64, alive=False)
    found[1]["Resources"]["GPU"] = 2.0
    monkeypatch.setattr(resources.ray, "nodes", lambda: found)
    assert resources.capacity(bundle) == expected


@pytest.mark.parametrize(
    ("found", "cpus", "refused"),
    [(nodes(4), 4, False), (nodes(4, 4), 8, True), (nodes(0), 0, True), (nodes(4) + nodes(4, alive=False), 4, False)],
)
def test_require_shared_local_disk_on_several_nodes_is_refused(
    found: list[dict[str, Any]], cpus: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Covers several nodes, and a head without CPUs whose worker nodes have not joined yet."""
    monkeypatch.setattr(resources.ray, "nodes", lambda: found)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    monkeypatch.setattr(checks, "is_own_disk", lambda location: not location.startswith(("s3://", "/network")))
    resources.require_shared({"--storage": "s3://bucket/runs", "--images": "/network/photos"})
    if not refused:
        resources.require_shared({"--storage": "/runs"})
        return
    with pytest.raises(
        InputError, match=r"^--storage /runs: on the disk of one machine, .* such as s3://bucket/prefix"
    ):
        resources.require_shared({"--images": "s3://bucket/photos", "--storage": "/runs"})
