"""What several tests need: a small drawn set, one Ray for all, and a way to run a job as its user does."""

import functools
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import stores
from PIL import Image

from petseg.data import decode, labels, manifest
from petseg.inference import plan as plans
from petseg.inference.plan import Outputs, Plan, Summary
from petseg.inference.shard import predict_shard, read_shard, write_shard

if TYPE_CHECKING:
    from petseg.inference.predictor import Mask, Prediction

ROOT = Path(__file__).parent.parent

# Before Ray is imported anywhere: no token file in the home folder, no reports, no chatter, quick health checks.
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_worker_niceness": "0",  # else tests without Ray, in the process beside, starve its workers
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # where Ray has not noticed yet that a node is gone
}
os.environ.pop("RAY_ADDRESS", None)

# Ray notes in this folder which one was started on a machine: where tests run side by side, none may find another's.
RAY_FOLDER = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
os.environ["RAY_TMPDIR"] = RAY_FOLDER.name

# Nor anything of the user's own AWS settings: the store of the tests is the only one there is.
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ |= {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
}

PAIRS = 24


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start jobs come first: side by side, a long one begun last would be waited for alone."""
    starting = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in starting)


RunJob = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of `PAIRS` generated photos and their trimaps; not to be changed."""
    from petseg.data import demo

    images, trimaps = demo.draw_set(str(tmp_path_factory.mktemp("drawn")), count=PAIRS, seed=7)
    return Path(images), Path(trimaps)


@pytest.fixture(scope="session")
def pets() -> Path:
    """The folder of real photos, with small/, full/ and bad/ in it."""
    folder = os.environ.get("PETSEG_PETS")
    if not folder:
        pytest.skip("PETSEG_PETS names no folder of real photos")
    return Path(folder).absolute()


class Store(NamedTuple):
    """The object store of the tests, whose settings are in the environment."""

    url: str
    """The bucket."""
    proxy: stores.FaultyProxy
    """Through which all of it is reached."""
    keys: stores.Keys
    """Of one who may do everything; they are in the environment, too."""
    reader: stores.Keys
    """Of one who may read and list below open/, and nothing else."""


@pytest.fixture(scope="session")
def way_to_store() -> Iterator[Store]:
    """Where the store will be, once a test wants it; what is started before then can be told."""
    proxy = stores.FaultyProxy()
    keys = stores.new_keys()
    os.environ |= {"AWS_ENDPOINT_URL": proxy.endpoint, **keys}
    yield Store(f"s3://{stores.BUCKET}", proxy, keys, stores.new_keys())
    proxy.stop()


@pytest.fixture(scope="session")
def store_of_all(way_to_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real object store, and a proxy before it that does nothing to it yet."""
    seaweed = stores.SeaweedFS(tmp_path_factory.mktemp("seaweedfs"), way_to_store.keys, way_to_store.reader)
    way_to_store.proxy.upstream_port = seaweed.port
    yield way_to_store
    seaweed.stop()


@pytest.fixture
def store(store_of_all: Store) -> Iterator[Store]:
    """The store, with a proxy that does and knows nothing yet."""
    store_of_all.proxy.reset()
    yield store_of_all
    store_of_all.proxy.reset()


@pytest.fixture
def prefix(store: Store, request: pytest.FixtureRequest) -> str:
    """A place in the store for one test."""
    return f"{store.url}/{request.node.name.partition('[')[0]}-{secrets.token_hex(3)}"


@pytest.fixture(scope="session")
def local_ray(way_to_store: Store) -> Iterator[None]:
    """One Ray for the whole session: 4 logical CPUs, since two workers and the data tasks need more than two.

    Its workers have the environment in which it is started, so they know where the store is.
    """
    import ray

    from petseg.cluster import connect

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        log_to_driver=False,
        address="local",
    )
    connect.quieten()
    yield
    ray.shutdown()


@pytest.fixture
def cluster(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray of a head that runs no tasks, on this machine, to which a test adds nodes that do; they know the store."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 4},
        },
    )
    monkeypatch.setenv("RAY_ADDRESS", str(nodes.address))
    yield nodes
    nodes.shutdown()


@pytest.fixture(autouse=True)
def joined(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that a test marked `ray` starts join the session's Ray: starting one for each would take minutes in all.

    That they start one where there is none is what the tests marked `own_ray` show.
    """
    if request.node.get_closest_marker("ray") and not request.node.get_closest_marker("own_ray"):
        request.getfixturevalue("local_ray")
        import ray

        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def run_in(folder: Path, job: str, *flags: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python jobs/JOB.py FLAGS…` in a folder, to its end."""
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, flags)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """`run_in` the test's own folder."""
    return functools.partial(run_in, tmp_path)


SHARD_SIZE_HW = (16, 24)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven photos in two folders; b/3 is broken."""
    folder = tmp_path / "photos"
    for i in range(7):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = [0, 0, 0]
        colour[i % 3] = 255
        Image.new("RGB", (30 + i, 20), tuple(colour)).save(path)
    (folder / "b" / "3.jpg").write_bytes(b"broken")
    return folder


def make_plan(photos: Path, output: Path, **changes: object) -> Plan:
    settings = {"shard_size": 3, "outputs": Outputs(), "settings": {"checkpoint_sha256": "c0ffee"}} | changes
    return plans.make_plan(manifest.discover(str(photos)), str(output), **settings)  # pyright: ignore


def paint(photos: list[decode.Photo]) -> "Iterator[Prediction]":
    """A predictor that needs no network: the class is the photo's brightest channel."""
    import torch

    from petseg.inference.predictor import Prediction

    for photo in photos:
        probabilities = torch.full((3, 4, 4), 0.125)
        probabilities[int(photo.pixels.mean((0, 1)).argmax())] = 0.75
        yield Prediction(probabilities, photo.height, photo.width, keep_probabilities=True)


def do_shards(plan: Plan, *numbers: int, tile_hw: tuple[int, int] | None = None) -> dict[int, Summary]:
    """Those shards, read, painted and written as the job does it, without Ray."""

    def paint_tiled(picture: Image.Image) -> "Mask":
        pixels = np.asarray(picture)
        return next(paint([decode.Photo(pixels, *pixels.shape[:2])])).mask()

    done, outputs = {}, plan.target.outputs
    common: Any = {"size_hw": SHARD_SIZE_HW, "max_pixels": 10**6}
    with ThreadPoolExecutor(2) as pool:
        for number in numbers:
            table = plans.rows_of(plan.manifest, number, plan.shard_size)
            table = read_shard(table, **common, tile_hw=tile_hw, previews=outputs.overlay)
            table = predict_shard(
                table,
                **common,
                outputs=outputs,
                palette=labels.palette(3),
                predict=paint,
                predict_tiled=paint_tiled,
                pool=pool,
            )
            done[number] = write_shard(table, plan.target)
    return done
