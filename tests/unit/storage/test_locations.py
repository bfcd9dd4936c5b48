"""Absolute locations: settings that hold in any working directory."""

from pathlib import Path

import pytest

from petseg.config.prepare import CheckConfig
from petseg.config.train import TrainConfig
from petseg.errors import InputError
from petseg.storage.locations import absolute_locations


def test_absolute_locations_every_folder_and_list_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lists = ("train=lists/a.txt", "val=s3://bucket/b.txt", "odd=name.txt")
    config = TrainConfig(images="photos", masks="s3://bucket/masks/", init_from="", split_file=lists, name="run")
    expected = TrainConfig(
        images=f"{tmp_path}/photos",
        masks="s3://bucket/masks",
        storage=f"{tmp_path}/runs",
        split_file=(f"train={tmp_path}/lists/a.txt", "val=s3://bucket/b.txt", f"{tmp_path}/odd=name.txt"),
        name="run",
    )
    assert absolute_locations(config) == expected
    assert absolute_locations(expected) == expected


def test_absolute_locations_each_checkpoint_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = CheckConfig(images="i", masks="m", output="o", checkpoint=("runs/1", "s3://bucket/runs/2"))
    assert absolute_locations(config).checkpoint == (f"{tmp_path}/runs/1", "s3://bucket/runs/2")


def test_absolute_locations_uri_without_a_bucket_is_refused() -> None:
    with pytest.raises(InputError, match="scheme://bucket/prefix is expected"):
        absolute_locations(CheckConfig(images="photos", masks="masks", output="out", split_file=("val=s3:///list",)))
