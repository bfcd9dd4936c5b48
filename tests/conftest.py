"""Shared fixtures and helpers: a small generated set, one Ray per session, an object store, and ways to run a job."""

import contextlib
import functools
import importlib
import io
import itertools
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import stores
from PIL import Image

from petseg import storage
from petseg.data import decode, labels, manifest
from petseg.inference import plan
from petseg.inference.plan import Outputs, Plan, Summary, Work
from petseg.inference.shard import predict_shard, read_shard, write_shard

if TYPE_CHECKING:
    from petseg.data.tiles import Tiling
    from petseg.inference.predictor import Prediction

ROOT = Path(__file__).parent.parent

# Set before Ray is imported: no token file in the home folder, no usage reports, no progress bars, quick health checks.
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # costs a process per training; the preemption test enables it
    "RAY_worker_niceness": "0",  # else tests without Ray in the other pytest process starve the workers
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # for a lost node that Ray has not noticed yet
}
os.environ.pop("RAY_ADDRESS", None)

# Set before torch is imported. Two pytest processes and their Rays share the cores, and torch threads that wait for one
# another on a busy core are many times slower. Jobs set their own number of threads. `petseg evaluate` also sets one
# thread, so that `call_job` leaves torch unchanged.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

# Ray stores the address of the last started Ray in this folder. Parallel test processes must not find each other's Ray.
RAY_FOLDER = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
os.environ["RAY_TMPDIR"] = RAY_FOLDER.name

# The user's own AWS settings are removed, so that the tests reach only their own store.
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
    """Run files that start jobs first, so that in parallel runs no long file is left to the end."""
    starting = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in starting)


RunJob = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of `PAIRS` generated photos and their trimaps. Do not change them."""
    from petseg.data import demo

    images, trimaps = demo.draw_set(str(tmp_path_factory.mktemp("drawn")), count=PAIRS, seed=7)
    return Path(images), Path(trimaps)


@pytest.fixture(scope="session")
def pets() -> Path:
    """Folder of real photos with the subfolders small/, full/ and bad/."""
    folder = os.environ.get("PETSEG_PETS")
    if not folder:
        pytest.skip("PETSEG_PETS names no folder of real photos")
    return Path(folder).absolute()


class Store(NamedTuple):
    """The tests' object store. Its settings are in the environment."""

    url: str
    """URI of the bucket."""
    proxy: stores.FaultyProxy
    """Proxy through which all requests go."""
    keys: stores.Keys
    """Keys with all permissions. They are also in the environment."""
    reader: stores.Keys
    """Keys that may only read and list below open/."""


@pytest.fixture(scope="session")
def way_to_store() -> Iterator[Store]:
    """Address and keys of the store before it is started. Processes started earlier get them from the environment."""
    proxy = stores.FaultyProxy()
    keys = stores.new_keys()
    os.environ |= {"AWS_ENDPOINT_URL": proxy.endpoint, **keys}
    yield Store(f"s3://{stores.BUCKET}", proxy, keys, stores.new_keys())
    proxy.stop()


@pytest.fixture(scope="session")
def store_of_all(way_to_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real object store behind a proxy that injects no faults yet."""
    seaweed = stores.SeaweedFS(tmp_path_factory.mktemp("seaweedfs"), way_to_store.keys, way_to_store.reader)
    way_to_store.proxy.upstream_port = seaweed.port
    yield way_to_store
    seaweed.stop()


@pytest.fixture
def store(store_of_all: Store) -> Iterator[Store]:
    """The store behind a reset proxy, with no faults and no counts."""
    store_of_all.proxy.reset()
    yield store_of_all
    store_of_all.proxy.reset()


@pytest.fixture
def prefix(store: Store, request: pytest.FixtureRequest) -> str:
    """URI prefix in the store for one test."""
    return f"{store.url}/{request.node.name.partition('[')[0]}-{secrets.token_hex(3)}"


@pytest.fixture(scope="session")
def local_ray(way_to_store: Store) -> Iterator[None]:
    """One Ray per session, with 4 logical CPUs: two workers and the data tasks need more than two.

    Its workers inherit the environment at its start, so they can reach the store.
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
    connect.silence_logs()
    yield
    ray.shutdown()


@pytest.fixture
def cluster(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray head without CPUs on this machine. A test adds nodes, which can reach the store."""
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
    """Let jobs of a test marked `ray` join the session's Ray. A Ray per job would cost minutes in all.

    Tests marked `own_ray` check that a job starts a Ray if there is none.
    """
    if request.node.get_closest_marker("ray") and not request.node.get_closest_marker("own_ray"):
        request.getfixturevalue("local_ray")
        import ray

        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def run_in(folder: Path, job: str, *flags: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python jobs/JOB.py FLAGS…` in a folder and wait for its end."""
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, flags)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """Return `run_in` for the test's own folder."""
    return functools.partial(run_in, tmp_path)


def call_in(folder: Path, job: str, *flags: object) -> subprocess.CompletedProcess[str]:
    """Run a job in a folder as `run_in` does, but in this process.

    This saves seconds: torch and Ray are imported already, and the job uses the session's connection to Ray and
    the worker processes of the previous job. A job that needs no Ray starts none.
    """
    command = [str(ROOT / "jobs" / f"{job}.py"), *map(str, flags)]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(mock.patch.object(sys, "argv", command))
        stack.enter_context(contextlib.redirect_stdout(stdout))
        stack.enter_context(contextlib.redirect_stderr(stderr))
        stack.enter_context(connected_to_ray())
        ended = stack.enter_context(pytest.raises(SystemExit))
        importlib.import_module(f"petseg.jobs.{job}").run()
    code = ended.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def connected_to_ray() -> Iterator[None]:
    """Let code in this process use the existing connection to Ray, if any, with its own Ray Data settings."""
    if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        yield
        started = "ray" in sys.modules and sys.modules["ray"].is_initialized()
        assert not started, "this has started a Ray: mark the test `ray`, or use `run_job`"
        return
    import ray

    context = ray.data.DataContext.get_current()
    with mock.patch("ray.init"), mock.patch("ray.shutdown"), mock.patch("ray._private.worker.print_worker_logs"):
        ray.data.DataContext._set_current(context.copy())
        try:
            yield
        finally:
            ray.data.DataContext._set_current(context)


@pytest.fixture
def call_job(tmp_path: Path) -> RunJob:
    """Return `call_in` for the test's own folder."""
    return functools.partial(call_in, tmp_path)


def assert_refused(done: subprocess.CompletedProcess[str], *fragments: str) -> None:
    """Check for exit code 2 and one line on stderr that begins with "error: " and contains all fragments."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout
    assert [fragment for fragment in fragments if fragment not in done.stderr] == [], done.stderr


SHARD_SIZE_HW = (16, 24)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folder with seven photos in two subfolders. b/3 is broken."""
    folder = tmp_path / "photos"
    for i in range(7):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = [0, 0, 0]
        colour[i % 3] = 255
        Image.new("RGB", (30 + i, 20), tuple(colour)).save(path)
    (folder / "b" / "3.jpg").write_bytes(b"broken")
    return folder


def kill_at_step(patched: pytest.MonkeyPatch, step: int) -> None:
    """Let one of the deletions and writes of `storage`, counted from 0, and all later ones, end as a kill does."""
    numbers = itertools.count()

    def killed(call: Callable[..., None]) -> Callable[..., None]:
        def run(*given: object, **named: object) -> None:
            if next(numbers) >= step:
                raise KeyboardInterrupt
            call(*given, **named)

        return run

    for name in ("remove_file", "write"):
        patched.setattr(storage, name, killed(getattr(storage, name)))


def make_plan(photos: Path, output: Path, **changes: object) -> Plan:
    settings = {"shard_size": 3, "outputs": Outputs(), "settings": {"checkpoint_sha256": "c0ffee"}} | changes
    return plan.make_plan(manifest.discover(str(photos)), str(output), **settings)  # pyright: ignore


def paint(photos: list[decode.Photo]) -> "Iterator[Prediction]":
    """Predict without a network: the class is the photo's brightest channel."""
    import torch

    from petseg.inference.predictor import Prediction

    for photo in photos:
        probabilities = torch.full((3, 4, 4), 0.125)
        probabilities[int(photo.pixels.mean((0, 1)).argmax())] = 0.75
        yield Prediction(probabilities, photo.height, photo.width, keep_probabilities=True)


def do_shards(plan: Plan, *numbers: int, tiling: "Tiling | None" = None) -> dict[int, Summary]:
    """Read, predict (see `paint`) and write these shards as the job does, without Ray."""
    return do_work(Work(plan, list(numbers), {}), tiling=tiling)


def do_work(work: Work, tiling: "Tiling | None" = None) -> dict[int, Summary]:
    """Read, predict (see `paint`) and write as the job does, without Ray."""

    def paint_tiled(picture: Image.Image) -> "Prediction":
        pixels = np.asarray(picture)
        return next(paint([decode.Photo(pixels, *pixels.shape[:2])]))

    done, target = {}, work.plan.target
    outputs = target.outputs
    common: Any = {"size_hw": SHARD_SIZE_HW, "max_pixels": 10**6}
    with ThreadPoolExecutor(2) as pool:
        for number in work.shards:
            table = work.rows(number)
            table = read_shard(table, **common, tiling=tiling, previews=outputs.overlay)
            table = predict_shard(
                table,
                **common,
                outputs=outputs,
                palette=labels.palette(3),
                predict=paint,
                predict_tiled=paint_tiled,
                pool=pool,
            )
            done[number] = write_shard(table, target, into_existing=number in work.again)
    return done
