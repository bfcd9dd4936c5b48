import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from petseg import manifest, runs
from petseg.config import InputError, TrainConfig


def pairs(*ids: str) -> pa.Table:
    rows = [{"id": i, "image": f"/i/{i}.jpg", "mask": f"/m/{i}.png"} for i in ids]
    return pa.Table.from_pylist(rows, schema=manifest.SCHEMA)


def not_again(_: TrainConfig) -> TrainConfig:
    pytest.fail("the flags of a new run are read once")


def begun(storage: Path, **settings: Any) -> TrainConfig:
    config = TrainConfig(storage=str(storage), name="run", **settings)
    config = runs.resolve(config, parse=not_again)
    runs.begin(config, pairs("b", "a"), pairs("c"))
    return config


def resume(storage: Path, **flags: Any) -> TrainConfig:
    """Resolve as the job does whose command line has these flags."""
    first = TrainConfig(storage=str(storage), name="run", resume=True, **flags)
    return runs.resolve(first, parse=lambda default: dataclasses.replace(default, **flags))


def test_a_new_run_gets_a_name_and_absolute_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = runs.resolve(TrainConfig(images="i", masks="m"), parse=not_again)
    assert (config.images, config.masks, config.storage) == (f"{tmp_path}/i", f"{tmp_path}/m", f"{tmp_path}/runs")
    assert len(config.name) == len("2026-01-31-235959")
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_what_it_started_from(tmp_path: Path) -> None:
    config = begun(tmp_path, epochs=3)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 3
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "run" / "manifest.parquet")
    assert rows["id"].to_pylist() == ["b", "a", "c"]
    assert rows["split"].to_pylist() == ["train", "train", "val"]
    assert runs.read_metrics(runs.folder(config)) == []


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    config = begun(tmp_path)
    with pytest.raises(InputError, match=r"--name run: .*run is there already; .*--resume goes on"):
        runs.resolve(config, parse=not_again)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match=r"--name other: .*it holds other files"):
        runs.resolve(dataclasses.replace(config, name="other"), parse=not_again)


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--storage .*file is not a folder"):
        begun(tmp_path / "file")


def test_resume_takes_the_settings_of_the_run_and_may_be_given_more_epochs(tmp_path: Path) -> None:
    begun(tmp_path, epochs=3, seed=5, batch_size=4, images=str(tmp_path), masks=str(tmp_path))
    config = resume(tmp_path, epochs=9, num_workers=2)
    assert (config.epochs, config.seed, config.batch_size, config.num_workers) == (9, 5, 4, 2)
    assert config.images == str(tmp_path) and config.resume
    runs.begin(config, pairs("b", "a"), pairs("c"))


def test_resume_refuses_what_would_make_it_another_run(tmp_path: Path) -> None:
    begun(tmp_path, seed=5)
    message = r"other settings: --seed \(was 5, now 6\), --learning-rate \(was 0.001, now 0.1\); leave them out"
    with pytest.raises(InputError) as caught:
        resume(tmp_path, seed=6, learning_rate=0.1)
    for part in ("--seed (was 5, now 6)", "--learning-rate (was 0.001, now 0.1)", "leave them out"):
        assert part in str(caught.value), message


def test_resume_refuses_other_pairs(tmp_path: Path) -> None:
    begun(tmp_path)
    config = resume(tmp_path)
    with pytest.raises(InputError, match=r"the pairs are not those .* \(1 new, 2 gone\)"):
        runs.begin(config, pairs("b"), pairs("d"))
    with pytest.raises(InputError, match=r"the pairs are not those .* \(0 new, 0 gone\)"):
        runs.begin(config, pairs("a", "b"), pairs("c"))


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--resume --name run: there is no run in .*run"):
        resume(tmp_path)


def test_describe() -> None:
    epoch = {
        "epoch": 2,
        "train_loss": 0.51,
        "val_loss": 0.62,
        "val_pixel_accuracy": 0.8,
        "val_miou": 0.5,
        "val_iou": {"pet": 0.25, "border": None},
        "train_images_per_s": 31.4,
        "seconds": 45.0,
    }
    assert runs.describe(epoch, 10) == (
        "epoch  2/10  train loss 0.510  val loss 0.620  accuracy 0.800  mIoU 0.500 (pet 0.250 border –)  "
        "31 images/s  ETA 6:00"
    )
