"""The jobs with every place in an object store: a real one, behind a proxy that does what networks do."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import stores
from conftest import PAIRS, ROOT, RunJob, Store, run_in

from petseg import storage
from petseg.inference.plan import SUCCESS_FILE
from petseg.training import run_folder

SETTINGS = ("--image-size", 64, 64, "--batch-size", 8, "--val-count", 7, "--num-workers", 2, "--cpus-per-worker", 1)
TRAIN = (*SETTINGS, "--precision", "fp32", "--epochs", 2)
PREDICT = ("--shard-size", 2, "--overlay")
WEATHER = {"refuse": 0.05, "drop": 0.04, "lose": 0.03, "truncate": 0.04, "delay": 0.02}

pytestmark = pytest.mark.ray


class Bucket(NamedTuple):
    """What is in the store: photos, their masks, a run of two epochs, and what it says of the photos."""

    images: str
    masks: str
    runs: str
    predicted: str
    log: str
    """What the jobs have printed."""

    def predict(self, *flags: object) -> list[object]:
        """Flags of the job that has made `predicted`."""
        return ["--checkpoint", f"{self.runs}/first", "--images", self.images, *PREDICT, *flags]


@pytest.fixture(scope="module")
def bucket(
    local_ray: None, store_of_all: Store, drawn: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Bucket:
    import ray

    root = f"{store_of_all.url}/jobs"
    for name, folder in zip(("photos", "masks"), drawn, strict=True):
        for path in folder.iterdir():
            storage.write(f"{root}/{name}/some/{path.name}", path.read_bytes())
    storage.write(f"{root}/photos-to-predict/broken.jpg", b"broken")
    for path in drawn[0].iterdir():
        storage.write(f"{root}/photos-to-predict/{path.name}", path.read_bytes())
    found = Bucket(f"{root}/photos-to-predict", f"{root}/masks", f"{root}/runs", f"{root}/predicted", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        folder = tmp_path_factory.mktemp("bucket")
        places = ("--images", f"{root}/photos", "--masks", found.masks, "--storage", found.runs)
        trained = run_in(folder, "train", *places, "--name", "first", *TRAIN)
        assert trained.returncode == 0, trained.stderr
        predicted = run_in(folder, "predict", *found.predict("--output", found.predicted))
        assert predicted.returncode == 0, predicted.stderr
    assert list(folder.iterdir()) == []
    return found._replace(log=trained.stdout + trained.stderr + predicted.stdout + predicted.stderr)


@pytest.fixture
def weather(store: Store) -> Iterator[stores.FaultyProxy]:
    """A proxy that a test may let do anything, and that is quiet again after it."""
    yield store.proxy
    store.proxy.reset()


def contents(place: str) -> dict[str, bytes]:
    """All that is below a place."""
    names = [
        name for name in storage.list_files(place) if name not in ("report.html", "config.json")
    ]  # times; the place
    found = dict(zip(names, storage.read_each([storage.join(place, name) for name in names]), strict=True))
    return {name: content for name, content in found.items() if isinstance(content, bytes)}


def test_a_run_lies_in_the_bucket(bucket: Bucket) -> None:
    names = set(storage.list_files(f"{bucket.runs}/first"))
    assert {name.partition("/")[0] for name in names} == {
        "checkpoints",
        "config.json",
        "manifest.parquet",
        "metrics.jsonl",
        "report.html",
        "tensorboard",
    }
    assert "checkpoints/epoch-0002/metrics.json" in names
    assert [epoch["epoch"] for epoch in run_folder.read_metrics(f"{bucket.runs}/first")] == [1, 2]


@pytest.mark.slow
def test_masks_in_the_bucket_are_those_of_a_disk(
    bucket: Bucket, drawn: tuple[Path, Path], tmp_path: Path, run_job: RunJob
) -> None:
    """The same run and photos, copied here, give the same files, but for where the photos were."""
    in_bucket = contents(bucket.predicted)
    for name, content in contents(f"{bucket.runs}/first").items():
        storage.write(str(tmp_path / "run" / name), content)
    done = run_job("predict", "--checkpoint", "run", "--images", drawn[0], "--output", "here", *PREDICT)
    assert done.returncode == 0, done.stderr
    here = contents(str(tmp_path / "here"))
    pictures = {name: content for name, content in here.items() if name.startswith(("masks/", "overlays/"))}
    assert len(pictures) == 2 * PAIRS
    assert pictures == {name: in_bucket[name] for name in in_bucket if name.startswith(("masks/", "overlays/"))}
    assert "25 rows, 1 failed: s3://" in bucket.log and "failed: broken: not an image" in bucket.log


@pytest.mark.slow
def test_a_set_prepared_in_the_bucket_is_trained_on_and_scored(bucket: Bucket, prefix: str, run_job: RunJob) -> None:
    photos = bucket.masks.replace("masks", "photos")
    pairs = ("--images", photos, "--masks", bucket.masks)
    prepared = run_job(
        "prepare", "shards", *pairs, "--output", f"{prefix}/set", "--image-size", 64, 64, "--shard-size", 9
    )
    assert prepared.returncode == 0, prepared.stderr
    flags = [flag for flag in TRAIN if flag not in ("--image-size", 64)]
    trained = run_job("train", "--data", f"{prefix}/set", "--storage", f"{prefix}/runs", "--name", "same", *flags)
    assert trained.returncode == 0, trained.stderr
    assert _scores(f"{prefix}/runs/same") == _scores(f"{bucket.runs}/first")
    scored = run_job("evaluate", "--checkpoint", f"{prefix}/runs/same", *pairs, "--output", f"{prefix}/scores")
    assert scored.returncode == 0, scored.stderr
    assert storage.read_json(f"{prefix}/scores/metrics.json")["pairs"] == PAIRS
    assert len(storage.list_names(f"{prefix}/scores/worst")) == 20


def test_no_key_is_in_what_is_printed_and_written(bucket: Bucket, store: Store) -> None:
    assert stores.secret_free(bucket.log, store.keys)
    for place in (f"{bucket.runs}/first", bucket.predicted):
        for name, content in contents(place).items():
            assert stores.secret_free(content.decode("latin-1"), store.keys), name


def test_bad_weather_changes_no_byte(bucket: Bucket, weather: stores.FaultyProxy, prefix: str, run_job: RunJob) -> None:
    weather.reset(3, **WEATHER)
    done = run_job("predict", *bucket.predict("--output", f"{prefix}/out"))
    assert done.returncode == 0, done.stderr
    assert set(weather.done) == set(WEATHER) and weather.done.total() > 20
    weather.reset()
    assert contents(f"{prefix}/out") == contents(bucket.predicted)


@pytest.mark.slow
def test_bad_weather_changes_no_number(
    bucket: Bucket, weather: stores.FaultyProxy, prefix: str, run_job: RunJob
) -> None:
    weather.reset(3, **WEATHER)
    photos = bucket.masks.replace("masks", "photos")
    places = ("--images", photos, "--masks", bucket.masks, "--storage", f"{prefix}/runs")
    trained = run_job("train", *places, "--name", "rough", *TRAIN)
    assert trained.returncode == 0, trained.stderr
    assert weather.done.total() > 5
    assert _scores(f"{prefix}/runs/rough") == _scores(f"{bucket.runs}/first")


def test_killed_then_stopped_by_a_store_that_goes_away_it_ends_with_the_same_bytes(
    bucket: Bucket, weather: stores.FaultyProxy, prefix: str, run_job: RunJob
) -> None:
    """No photo is blamed for the store, and what is there at any time is what will be there at the end."""
    output, expected = f"{prefix}/out", contents(bucket.predicted)
    killed = start("predict", *bucket.predict("--output", output))
    wait_for_shards(killed, output, 1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    found = contents(output)
    assert SUCCESS_FILE not in found and found == {name: expected[name] for name in found}

    job = start("predict", *bucket.predict("--output", output))
    wait_for_shards(job, output, 2 + len([name for name in found if name.startswith("part-")]))
    weather.reset(0, refuse=1.0)
    _, log = job.communicate(timeout=240)
    assert job.returncode == 1, log
    line = log.splitlines()[-1]
    assert line.startswith("stopped: ") and "refused 6 times: SlowDown" in line and line.endswith("command again")
    weather.reset()
    before = contents(output)
    assert SUCCESS_FILE not in before
    assert before == {name: expected[name] for name in before}
    again = run_job("predict", *bucket.predict("--output", output))
    assert again.returncode == 0, again.stderr
    assert contents(output) == expected


@pytest.mark.slow
def test_of_two_jobs_that_race_for_one_output_one_is_told(bucket: Bucket, prefix: str, store: Store) -> None:
    """Of other settings, so that neither can do the other's work."""
    flags = [bucket.predict("--output", f"{prefix}/out", "--batch-size", size) for size in (4, 8)]
    jobs = [start("predict", *given) for given in flags]
    logs = [job.communicate(timeout=240) for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 2], logs
    [told] = [log for job, (_, log) in zip(jobs, logs, strict=True) if job.returncode == 2]
    line = told.splitlines()[-1]
    assert re.match(rf"error: --output: {prefix}/out.* is there already|error: --output {prefix}/out: begun", line), (
        line
    )
    assert SUCCESS_FILE in storage.list_names(f"{prefix}/out")


@pytest.mark.parametrize(
    ("job", "flags", "message"),
    [
        ("predict", "--images s3://nowhere/a --checkpoint c --output o", "s3://nowhere: no such bucket"),
        ("predict", "--images IMAGES --checkpoint c --output s3://nowhere/o", "--output s3://nowhere/o: cannot be"),
        ("predict", "--images IMAGES --checkpoint s3://nowhere/c --output o", "s3://nowhere: no such bucket"),
        ("predict", "--images IMAGES/none --checkpoint c --output o", "no image in it"),
        ("predict", "--images IMAGES --checkpoint RUNS/none --output o", "neither a run's folder nor"),
        ("predict", "--images IMAGES --checkpoint c --output IMAGES/o", "it lies in --images"),
        ("train", "--images IMAGES --masks s3://nowhere/m", "s3://nowhere/m: cannot be listed"),
        ("train", "--images IMAGES --masks MASKS --storage s3://nowhere/r", "--storage s3://nowhere/r"),
        ("train", "--images IMAGES --masks MASKS --storage RUNS --name first", "--resume goes on with it"),
        ("train", "--data s3://nowhere/set", "s3://nowhere"),
    ],
)
def test_a_place_that_is_none_is_one_line_before_ray_starts(
    job: str, flags: str, message: str, bucket: Bucket, run_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # where none answers: that would be another line
    for name, place in (("IMAGES", bucket.images), ("MASKS", bucket.masks), ("RUNS", bucket.runs)):
        flags = flags.replace(name, place)
    done = run_job(job, *flags.split())
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


def _scores(run: str) -> list[dict[str, object]]:
    """What a run's epochs say, but for how long they took."""
    timing = ("train_images_per_s", "seconds")
    return [{key: epoch[key] for key in epoch if key not in timing} for epoch in run_folder.read_metrics(run)]


def start(job: str, *flags: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def wait_for_shards(job: subprocess.Popen[str], output: str, least: int) -> None:
    deadline = time.monotonic() + 120
    while len([name for name in storage.list_names(output) if name.startswith("part-")]) < least:
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.05)
