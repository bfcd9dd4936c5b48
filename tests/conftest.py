"""What several tests need: a small drawn set, one Ray for all, and a way to run a job as its user does."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Before Ray is imported anywhere: no token file in the home folder, no reports, no chatter, quick health checks.
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
os.environ.pop("RAY_ADDRESS", None)

PAIRS = 24

RunJob = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of `PAIRS` generated photos and their trimaps; not to be changed."""
    from petseg import demo

    images, trimaps = demo.draw_set(str(tmp_path_factory.mktemp("drawn")), count=PAIRS, seed=7)
    return Path(images), Path(trimaps)


@pytest.fixture(scope="session")
def pets() -> Path:
    """The folder of real photos, with small/, full/ and bad/ in it."""
    folder = os.environ.get("PETSEG_PETS")
    if not folder:
        pytest.skip("PETSEG_PETS names no folder of real photos")
    return Path(folder).absolute()


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for the whole session: 4 logical CPUs, since two workers and the data tasks need more than two."""
    import ray

    from petseg import cluster

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        log_to_driver=False,
        address="local",
    )
    cluster.quieten()
    yield
    ray.shutdown()


def run_in(folder: Path, job: str, *flags: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python jobs/JOB.py FLAGS…` in a folder, to its end."""
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, flags)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """`run_in` the test's own folder."""
    return functools.partial(run_in, tmp_path)
