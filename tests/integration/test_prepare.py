"""`jobs/prepare.py shards` from its command line. The content of its files: tests/unit/data/test_prepared.py."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, RunJob, assert_refused

from petseg import files, storage
from petseg.config.prepare import ShardsConfig
from petseg.data import manifest, prepared, prepared_writer
from petseg.data.classes import resolve_classes
from petseg.data.labels import LabelMap
from petseg.data.prepared import Target
from petseg.errors import UnavailableError
from petseg.pipelines.pair_rows import decode_rows
from petseg.status import read_status
from petseg.storage import sharded_output

FLAGS = ("shards", "--images", "images", "--masks", "masks", "--output", "set")
SETTINGS = ("--image-size", "32", "48", "--shard-size", "5")


@pytest.fixture
def source(drawn: tuple[Path, Path], tmp_path: Path) -> Path:
    for name, folder in zip(("images", "masks"), drawn, strict=True):
        shutil.copytree(folder, tmp_path / name)
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    """Return {name: content} of the files except those that name the folder or have times."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("config.json", "status.json")
    }


def make(source: Path, output: Path) -> None:
    """Write the job's expected output without Ray."""
    config = ShardsConfig(
        images=f"{source}/images", masks=f"{source}/masks", output=str(output), image_size=(32, 48), shard_size=5
    )
    pairs, label_map = manifest.discover(config.images, config.masks), LabelMap.parse("", 3)
    target, done = prepared_writer.make_target(pairs, config, resolve_classes(config, config.masks)), {}
    for shard in range(target.num_shards):
        decoded = decode_rows(sharded_output.rows_of(pairs, shard, 5), (32, 48), label_map)
        done[shard] = prepared_writer.summarise(decoded, target)
        prepared_writer.write_shard(decoded, done[shard], shard, target)
    prepared_writer.finish(target, pairs, done)


@pytest.mark.ray
def test_prepare_unusable_pairs_are_refused_or_skipped_by_name(source: Path, call_job: RunJob) -> None:
    (source / "images" / "pet_0007.jpg").write_bytes(b"text")
    reason = f"{source}/images/pet_0007.jpg: not an image that can be read"
    refused = call_job("prepare", *FLAGS, *SETTINGS)
    assert_refused(refused, f"error: 1 pair cannot be used: {reason}")
    assert refused.stderr.endswith("fix or remove them, or skip them with --skip-bad\n")
    assert sorted(tree(source / "set")) == [f"part-0000{shard}-of-00005.parquet" for shard in (0, 2, 3, 4)]

    done = call_job("prepare", *FLAGS, *SETTINGS, "--skip-bad")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "19/24 images  79%  0 failed"
    assert lines[-2].endswith(f"; 23 pairs at 32 × 48 in 5 files, 1 skipped: {source}/set")
    assert lines[-1].startswith(f"  skipped: {reason}")
    status = read_status(f"{source}/set")
    assert (status.job, status.phase, status.done, status.unit) == ("prepare shards", "finished", 24, "pairs")
    make(source, source / "expected")
    assert tree(source / "set") == tree(source / "expected")

    again = call_job("prepare", *FLAGS, *SETTINGS)
    assert again.returncode == 0
    assert again.stdout.startswith("already finished; nothing to do; 23 pairs at 32 × 48")
    other = call_job("prepare", *FLAGS)
    assert_refused(other, f"error: --output {source}/set: it holds a set with other settings: image_size (was")


@pytest.mark.ray
def test_prepare_killed_second_run_ends_with_the_same_bytes(source: Path, call_job: RunJob) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *FLAGS, *SETTINGS]
    process = subprocess.Popen(command, cwd=source, start_new_session=True)
    while process.poll() is None and not list((source / "set").glob("part-*")):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (source / "set" / files.DATASET).exists()

    done = call_job("prepare", *FLAGS, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith("0/24 images")
    make(source, source / "expected")
    assert tree(source / "set") == tree(source / "expected")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--images", "gone"), "gone: no such folder"),
        (("--output", "images/set"), "/images/set: it is inside "),
        (("--output", "images/pet_0000.jpg/set"), "it is inside"),
        (("--image-size", "8", "8"), "--image-size 8 8: give at least 16 for both"),
        (("--label-map", "1:0"), "--label-map: no raw value gives class 1 of 3"),
        (("--shard-size", "0"), "--shard-size 0: give at least 1"),
    ],
    ids=str,
)
def test_prepare_invalid_flags_are_refused(
    flags: tuple[str, ...], message: str, source: Path, call_job: RunJob
) -> None:
    assert_refused(call_job("prepare", *FLAGS, *flags), message)
    assert not (source / "set").exists()


def test_prepared_unavailable_store_is_not_another_set(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the message would allow to delete the set."""
    make(source, tmp_path / "set")
    opened = prepared.open_set(str(tmp_path / "set"))
    located = prepared.locate(opened, opened.manifest)

    def away(location: str) -> object:
        raise UnavailableError(f"{location}: no answer")

    monkeypatch.setattr(storage, "open_file", away)
    for look in (
        lambda: prepared_writer.find_done(Target(str(tmp_path / "set"), 5, opened.settings)),
        lambda: prepared.open_set(str(tmp_path / "set")),
        lambda: prepared.read_rows(located, (32, 48)),
    ):
        with pytest.raises(UnavailableError, match="no answer"):
            look()
