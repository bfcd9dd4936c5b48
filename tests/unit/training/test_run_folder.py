import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from checkpoints import CONFIG

from petseg import cli, files, storage
from petseg.config.train import TrainConfig
from petseg.data import labels, manifest
from petseg.errors import InputError
from petseg.jobs import train as job
from petseg.status import JobStatus
from petseg.training import epoch_printer, run_folder


def pairs(*ids: str) -> pa.Table:
    rows = [{"id": i, "image": f"/i/{i}.jpg", "mask": f"/m/{i}.png"} for i in ids]
    return pa.Table.from_pylist(rows, schema=manifest.SCHEMA)


def begin_run(storage: Path, **settings: Any) -> TrainConfig:
    config = run_folder.resolve(TrainConfig(storage=str(storage), name="run", **settings), None)
    run_folder.begin(config, {"train": pairs("b", "a"), "val": pairs("c")})
    return config


def resume(storage: Path, **flags: Any) -> TrainConfig:
    """Resolve the settings as a job with --resume and these flags does."""
    first = run_folder.first_settings(str(storage), "run")
    assert first is not None
    return run_folder.resolve(dataclasses.replace(first, **flags), first)


def test_trained_ids_of_a_run_and_of_its_checkpoint_include_those_of_the_run_it_started_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin_run(tmp_path / "1")
    checkpoint = tmp_path / "1" / "run" / "checkpoints" / "epoch-0001"
    assert run_folder.trained_ids(str(tmp_path / "1" / "run")) == {"a", "b"}
    assert run_folder.trained_ids(str(checkpoint)) == {"a", "b"}
    later = run_folder.resolve(TrainConfig(storage=str(tmp_path / "2"), name="run", init_from=str(checkpoint)), None)
    run_folder.begin(later, {"train": pairs("c"), "val": pairs("d")})
    assert run_folder.trained_ids(str(tmp_path / "2" / "run")) == {"a", "b", "c"}
    assert capsys.readouterr().out == ""
    (tmp_path / "1").rename(tmp_path / "moved")
    assert run_folder.trained_ids(str(tmp_path / "2" / "run")) == {"c"}
    assert "it is not known on which pairs that was trained" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--checkpoint .*/moved: no manifest.parquet, which lists the pairs"):
        run_folder.trained_ids(str(tmp_path / "moved"))


def test_resolve_resumed_run_keeps_its_fold(tmp_path: Path) -> None:
    begin_run(tmp_path, val_fold="1/2")
    config = resume(tmp_path)
    assert (config.val_fold, config.val_count, config.val_fraction) == ("1/2", None, None)
    with pytest.raises(InputError, match=r"--val-fold \(was 1/2, now 2/2\)"):
        resume(tmp_path, val_fold="2/2")


def test_resolve_new_run_gets_a_name_and_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_folder.resolve(TrainConfig(images="i", masks="m"), None)
    assert (config.images, config.masks, config.storage) == (f"{tmp_path}/i", f"{tmp_path}/m", f"{tmp_path}/runs")
    assert len(config.name) == len("2026-01-31-235959")
    assert list(tmp_path.iterdir()) == []


def test_begin_config_and_manifest_are_written(tmp_path: Path) -> None:
    config = begin_run(tmp_path, epochs=3)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 3
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "run" / "manifest.parquet")
    assert rows["id"].to_pylist() == ["b", "a", "c"]
    assert rows["split"].to_pylist() == ["train", "train", "val"]
    assert run_folder.read_metrics(run_folder.folder(config)) == []


def test_resolve_existing_name_is_refused(tmp_path: Path) -> None:
    config = begin_run(tmp_path)
    with pytest.raises(InputError, match=r"--name run: .*run already exists; .*--resume continues"):
        run_folder.resolve(config, None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match=r"--name other: .*it holds other files"):
        run_folder.resolve(dataclasses.replace(config, name="other"), None)


def test_begin_unwritable_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--storage .*file is not a folder"):
        begin_run(tmp_path / "file")


def test_resume_keeps_the_settings_and_accepts_more_epochs(tmp_path: Path) -> None:
    begin_run(tmp_path, epochs=3, seed=5, batch_size=4, images=str(tmp_path), masks=str(tmp_path))
    config = resume(tmp_path, epochs=9, num_workers=(2,))
    assert (config.epochs, config.seed, config.batch_size, config.num_workers) == (9, 5, 4, (2,))
    assert config.images == str(tmp_path) and config.resume
    run_folder.begin(config, {"train": pairs("b", "a"), "val": pairs("c")})
    assert resume(tmp_path).epochs == 9  # the last given value is kept


def test_resume_other_settings_are_refused(tmp_path: Path) -> None:
    begin_run(tmp_path, seed=5)
    with pytest.raises(InputError) as caught:
        resume(tmp_path, seed=6, learning_rate=0.1)
    for part in ("--seed (was 5, now 6)", "--learning-rate (was 0.002, now 0.1)", "leave them out"):
        assert part in str(caught.value)


def test_resume_other_pairs_are_refused(tmp_path: Path) -> None:
    begin_run(tmp_path)
    config = resume(tmp_path)
    with pytest.raises(InputError, match=r"the pairs, or their order, .* \(1 new, 2 gone\)"):
        run_folder.begin(config, {"train": pairs("b"), "val": pairs("d")})
    with pytest.raises(InputError, match=r"the pairs, or their order, .* \(0 new, 0 gone\)"):
        run_folder.begin(config, {"train": pairs("a", "b"), "val": pairs("c")})


def test_resume_moved_folder_is_the_same_run(tmp_path: Path) -> None:
    begin_run(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    config = resume(tmp_path / "after")
    assert config.storage == str(tmp_path / "after")
    assert resume(tmp_path / "after", images="/moved", masks="/moved").images == "/moved"
    moved = [{"id": i, "image": f"/moved/{i}.jpg", "mask": f"/moved/{i}.png"} for i in "bac"]
    table = pa.Table.from_pylist(moved, schema=manifest.SCHEMA)
    run_folder.begin(config, {"train": table.slice(0, 2), "val": table.slice(2)})


def test_begin_two_jobs_same_name_second_is_refused(tmp_path: Path) -> None:
    config, other = (run_folder.resolve(TrainConfig(storage=str(tmp_path), name="run"), None) for _ in range(2))
    run_folder.begin(config, {"train": pairs("a"), "val": pairs("c")})
    with pytest.raises(InputError, match=r"--name: .*run/config\.json already exists; was another job started"):
        run_folder.begin(other, {"train": pairs("a"), "val": pairs("c")})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "manifest.parquet"]


def test_resume_run_killed_at_its_start_is_continued(tmp_path: Path) -> None:
    begin_run(tmp_path)
    (tmp_path / "run" / "manifest.parquet").unlink()
    run_folder.begin(resume(tmp_path), {"train": pairs("b", "a"), "val": pairs("c")})
    assert (tmp_path / "run" / "manifest.parquet").exists()


def start(monkeypatch: pytest.MonkeyPatch, *flags: object) -> TrainConfig:
    """Return the settings of a start with --resume auto and these flags, after its run folder is begun."""
    monkeypatch.setattr(sys, "argv", ["petseg", "--name", "run", "--resume", "auto", *map(str, flags)])
    resumed = cli.peek_resume()
    assert resumed is not None
    first = run_folder.first_settings(*resumed)
    config = run_folder.resolve(cli.parse("train", TrainConfig, first), first)
    run_folder.begin(config, {"train": pairs("b", "a"), "val": pairs("c")})
    return config


@pytest.mark.parametrize(
    "left",
    [
        pytest.param((), id="nothing"),
        pytest.param((".petseg-lock",), id="killed before it wrote a file"),
        pytest.param((".petseg-lock", ".petseg-tmp-0123"), id="killed while it wrote config.json"),
        pytest.param((".petseg-lock", "config.json"), id="killed before manifest.parquet"),
        pytest.param((".petseg-lock", "config.json", "manifest.parquet", ".petseg-tmp-0123"), id="before an epoch"),
        pytest.param((".petseg-lock", "status.json"), id="while it waited for nodes"),
    ],
)
def test_resume_auto_start_that_was_killed_is_continued_by_the_same_command(
    left: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, flags = tmp_path / "run", ("--storage", tmp_path, "--recipe", "keras", "--val-fold", "1/2", "--epochs", 3)
    undisturbed = start(monkeypatch, *flags)
    written = {path.name: path.read_bytes() for path in run.iterdir()}
    assert not undisturbed.resume and sorted(written) == ["config.json", "manifest.parquet"]
    shutil.rmtree(run)
    for name in left:
        storage.write(str(run / name), written.get(name, b"half"))
    again = start(monkeypatch, *flags)
    assert again == dataclasses.replace(undisturbed, resume="config.json" in left)
    found = {path.name: path.read_bytes() for path in run.iterdir() if path.name not in files.TRACES}
    assert found == written


def test_resume_auto_raised_epochs_are_kept_though_the_first_start_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, "--storage", tmp_path, "--epochs", 3)
    (tmp_path / "run" / "manifest.parquet").unlink()
    start(monkeypatch, "--storage", tmp_path, "--epochs", 9)
    assert start(monkeypatch, "--storage", tmp_path).epochs == 9


def test_resume_auto_other_settings_or_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "--storage", tmp_path, "--seed", 5)
    with pytest.raises(InputError, match=r"was started with other settings: --seed \(was 5, now 6\); leave them out"):
        start(monkeypatch, "--storage", tmp_path, "--seed", 6)
    storage.write(str(tmp_path / "other" / "run" / "file"), b"")
    with pytest.raises(InputError, match=r"--name run: .*it holds other files"):
        start(monkeypatch, "--storage", tmp_path / "other")


def test_resume_auto_two_starts_at_once_one_gets_the_name(tmp_path: Path) -> None:
    config = TrainConfig(storage=str(tmp_path), name="run", resume="auto")
    starts = [(config, run_folder.first_settings(str(tmp_path), "run", "auto")) for _ in range(2)]
    first, second = (run_folder.resolve(*each) for each in starts)
    run_folder.begin(first, {"train": pairs("a"), "val": pairs("c")})
    with pytest.raises(InputError, match=r"--name: .*run/config\.json already exists; was another job started"):
        run_folder.begin(second, {"train": pairs("a"), "val": pairs("c")})


@pytest.mark.parametrize("content", [b'{"epoch": 1', b"\xff"])
def test_read_metrics_edited_file_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl: a line of it is not JSON"):
        run_folder.read_metrics(str(tmp_path))


def test_resume_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--resume --name run: there is no run in .*run"):
        resume(tmp_path)


def test_describe_epoch_has_losses_scores_and_eta() -> None:
    epoch = {
        "epoch": 2,
        "train_loss": 0.51,
        "val_loss": 0.62,
        "val_pixel_accuracy": 0.8,
        "val_miou": 0.5,
        "val_iou": {"pet": 0.25, "border": None},
        "train_images_per_s": 31.4,
        "seconds": 40.0,
    }
    assert run_folder.describe(epoch, 10, pace_s=45.0) == (
        "epoch  2/10  train loss 0.510  val loss 0.620  accuracy 0.800  mIoU 0.500 (pet 0.250 border –)  "
        "31 images/s  ETA 6:00"
    )


def test_progress_eta_includes_the_time_between_epochs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epochs of 2 s arrive every 5 s. The first two are seen at once."""
    found: list[dict[str, object]] = []
    monkeypatch.setattr(run_folder, "read_metrics", lambda run: list(found))
    progress, left = epoch_printer.EpochPrinter("run", 10, JobStatus("train", "run"), 30), []
    for moment, count in ((100.0, 2), (105.0, 1), (110.0, 1)):
        monkeypatch.setattr(epoch_printer.time, "monotonic", lambda moment=moment: moment)
        for _ in range(count):
            found.append(
                {"epoch": len(found) + 1, "train_loss": 1.0, "val_loss": 1.0, "val_pixel_accuracy": 1.0}
                | {"val_miou": 1.0, "val_iou": {}, "train_images_per_s": 1.0, "seconds": 2.0}
            )
        progress._print_new()
        left += [line.rpartition("ETA ")[2] for line in capsys.readouterr().out.splitlines()]
    assert left == ["0:18", "0:16", "0:18", "0:20"]


def test_resumed_run_of_an_earlier_version_keeps_its_names_and_colours() -> None:
    before = dataclasses.replace(CONFIG, palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)), input_scale=0.5)
    unnamed = dataclasses.replace(CONFIG, class_names=labels.class_names(3))
    assert job._require_same_model(unnamed, before, "runs/first") == before
    with pytest.raises(InputError, match="--resume: class_names changed since runs/first was started"):
        job._require_same_model(dataclasses.replace(CONFIG, class_names=("a", "b", "c")), before, "runs/first")
    with pytest.raises(InputError, match="--resume: label_map changed since"):
        job._require_same_model(dataclasses.replace(unnamed, label_map="0:0,1:1,2:2"), before, "runs/first")
