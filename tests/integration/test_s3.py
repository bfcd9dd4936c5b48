"""The jobs with all locations in a real object store, behind a proxy that injects network faults."""

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
from conftest import PAIRS, ROOT, RunJob, Store, assert_refused, call_in, run_in

from petseg import files, storage
from petseg.training import run_folder

SETTINGS = ("--image-size", 64, 64, "--batch-size", 8, "--val-count", 7, "--num-workers", 2, "--cpus-per-worker", 1)
TRAIN = (*SETTINGS, "--precision", "fp32", "--epochs", 2)
PREDICT = ("--shard-size", 2, "--overlay")
WEATHER = {"refuse": 0.05, "drop": 0.04, "lose": 0.03, "truncate": 0.04, "delay": 0.02}

pytestmark = pytest.mark.ray


class Bucket(NamedTuple):
    """URIs in the store: photos, their masks, a run of two epochs, and its predictions."""

    images: str
    masks: str
    runs: str
    predicted: str
    log: str
    """Lines that the jobs printed."""

    def predict(self, *flags: object) -> list[object]:
        """Return the flags of the job that wrote `predicted`."""
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
        predicted = call_in(folder, "predict", *found.predict("--output", found.predicted))
        assert predicted.returncode == 0, predicted.stderr
    assert list(folder.iterdir()) == []
    return found._replace(log=trained.stdout + trained.stderr + predicted.stdout + predicted.stderr)


@pytest.fixture
def weather(store: Store) -> Iterator[stores.FaultyProxy]:
    """Proxy that injects faults on demand and is reset after the test."""
    yield store.proxy
    store.proxy.reset()


def contents(place: str) -> dict[str, bytes]:
    """Return {name: content} of the files below a location."""
    names = [
        name for name in storage.list_files(place) if name not in ("report.html", "config.json", "status.json")
    ]  # they have times and the location
    found = dict(zip(names, storage.read_each([storage.join(place, name) for name in names]), strict=True))
    return {name: content for name, content in found.items() if isinstance(content, bytes)}


def test_train_run_in_the_bucket_has_all_files(bucket: Bucket) -> None:
    names = set(storage.list_files(f"{bucket.runs}/first"))
    assert {name.partition("/")[0] for name in names} == {
        "checkpoints",
        "config.json",
        "manifest.parquet",
        "metrics.jsonl",
        "report.html",
        "status.json",
        "tensorboard",
    }
    assert "checkpoints/epoch-0002/metrics.json" in names
    assert [epoch["epoch"] for epoch in run_folder.read_metrics(f"{bucket.runs}/first")] == [1, 2]


@pytest.mark.slow
def test_predict_masks_in_the_bucket_equal_those_on_disk(
    bucket: Bucket, drawn: tuple[Path, Path], tmp_path: Path, run_job: RunJob
) -> None:
    """Local copies of the run and the photos give the same masks and overlays."""
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
def test_prepare_set_in_the_bucket_is_trained_on_and_evaluated(bucket: Bucket, prefix: str, run_job: RunJob) -> None:
    photos = bucket.masks.replace("masks", "photos")
    pairs = ("--images", photos, "--masks", bucket.masks)
    prepared = run_job(
        "prepare", "shards", *pairs, "--output", f"{prefix}/set", "--image-size", 64, 64, "--shard-size", 9
    )
    assert prepared.returncode == 0, prepared.stderr
    flags = [flag for flag in TRAIN if flag not in ("--image-size", 64)]
    trained = run_job("train", "--data", f"{prefix}/set", "--storage", f"{prefix}/runs", "--name", "same", *flags)
    assert trained.returncode == 0, trained.stderr
    assert "for so few pairs --recipe pretrained gives better masks" in trained.stdout
    assert _scores(f"{prefix}/runs/same") == _scores(f"{bucket.runs}/first")
    scored = run_job("evaluate", "--checkpoint", f"{prefix}/runs/same", *pairs, "--output", f"{prefix}/scores")
    assert scored.returncode == 0, scored.stderr
    assert storage.read_json(f"{prefix}/scores/metrics.json")["pairs"] == PAIRS
    assert len(storage.list_names(f"{prefix}/scores/worst")) == 20


def test_jobs_print_and_write_no_secret_key(bucket: Bucket, store: Store) -> None:
    assert stores.secret_free(bucket.log, store.keys)
    for place in (f"{bucket.runs}/first", bucket.predicted):
        for name, content in contents(place).items():
            assert stores.secret_free(content.decode("latin-1"), store.keys), name


def test_predict_network_faults_output_has_the_same_bytes(
    bucket: Bucket, weather: stores.FaultyProxy, prefix: str, call_job: RunJob
) -> None:
    weather.reset(3, **WEATHER)
    done = call_job("predict", *bucket.predict("--output", f"{prefix}/out"))
    assert done.returncode == 0, done.stderr
    assert set(weather.done) == set(WEATHER) and weather.done.total() > 20
    weather.reset()
    assert contents(f"{prefix}/out") == contents(bucket.predicted)


@pytest.mark.slow
def test_train_network_faults_scores_are_the_same(
    bucket: Bucket, weather: stores.FaultyProxy, prefix: str, run_job: RunJob
) -> None:
    weather.reset(3, **WEATHER)
    photos = bucket.masks.replace("masks", "photos")
    places = ("--images", photos, "--masks", bucket.masks, "--storage", f"{prefix}/runs")
    trained = run_job("train", *places, "--name", "rough", *TRAIN)
    assert trained.returncode == 0, trained.stderr
    assert weather.done.total() > 5
    assert _scores(f"{prefix}/runs/rough") == _scores(f"{bucket.runs}/first")


def test_predict_killed_then_store_unavailable_ends_with_the_same_bytes(
    bucket: Bucket, weather: stores.FaultyProxy, prefix: str, call_job: RunJob
) -> None:
    """No photo gets an error row for a fault of the store, and every file written has its final content.

    The job is continued with the flags of every night. Those change nothing here, because no photo is new.
    """
    output, expected = f"{prefix}/out", contents(bucket.predicted)
    killed = start("predict", *bucket.predict("--output", output))
    wait_for_shards(killed, output, 1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    found = contents(output)
    assert files.SUCCESS not in found and found == {name: expected[name] for name in found}

    job = start("predict", *bucket.predict("--output", output, "--append"))
    wait_for_shards(job, output, 2 + len([name for name in found if name.startswith("part-")]))
    weather.reset(0, refuse=1.0)
    _, log = job.communicate(timeout=240)
    assert job.returncode == 1, log
    line = log.splitlines()[-1]
    assert line.startswith("stopped: ") and "refused 6 times: SlowDown" in line and line.endswith("command again")
    weather.reset()
    before = contents(output)
    assert files.SUCCESS not in before
    assert before == {name: expected[name] for name in before}
    again = call_job("predict", *bucket.predict("--output", output, "--append", "--retry-errors"))
    assert again.returncode == 0, again.stderr
    assert contents(output) == expected


@pytest.mark.slow
def test_predict_two_jobs_same_output_second_is_refused(bucket: Bucket, prefix: str, store: Store) -> None:
    """The jobs have different settings, so neither can continue the other's work."""
    flags = [bucket.predict("--output", f"{prefix}/out", "--batch-size", size) for size in (4, 8)]
    jobs = [start("predict", *given) for given in flags]
    logs = [job.communicate(timeout=240) for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 2], logs
    [told] = [log for job, (_, log) in zip(jobs, logs, strict=True) if job.returncode == 2]
    line = told.splitlines()[-1]
    assert re.match(rf"error: --output: {prefix}/out.* already exists|error: --output {prefix}/out: begun", line), line
    assert files.SUCCESS in storage.list_names(f"{prefix}/out")


@pytest.mark.parametrize(
    ("job", "flags", "message"),
    [
        ("predict", "--images s3://nowhere/a --checkpoint c --output o", "s3://nowhere: no such bucket"),
        ("predict", "--images IMAGES --checkpoint c --output s3://nowhere/o", "--output s3://nowhere/o: cannot be"),
        ("predict", "--images IMAGES --checkpoint s3://nowhere/c --output o", "s3://nowhere: no such bucket"),
        ("predict", "--images IMAGES/none --checkpoint c --output o", "no images found"),
        ("predict", "--images IMAGES --checkpoint RUNS/none --output o", "neither a run's folder nor"),
        ("predict", "--images IMAGES --checkpoint c --output IMAGES/o", "it is inside --images"),
        ("train", "--images IMAGES --masks s3://nowhere/m", "s3://nowhere: no such bucket"),
        ("train", "--images IMAGES --masks MASKS --storage s3://nowhere/r", "--storage s3://nowhere/r"),
        ("train", "--images IMAGES --masks MASKS --storage RUNS --name first", "--resume continues it"),
        ("train", "--data s3://nowhere/set", "s3://nowhere"),
    ],
)
def test_job_invalid_location_is_refused_before_ray_starts(
    job: str, flags: str, message: str, bucket: Bucket, call_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # no Ray answers there, which would be another message
    for name, place in (("IMAGES", bucket.images), ("MASKS", bucket.masks), ("RUNS", bucket.runs)):
        flags = flags.replace(name, place)
    assert_refused(call_job(job, *flags.split()), message)


def _scores(run: str) -> list[dict[str, object]]:
    """Return a run's epochs without their timing."""
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
