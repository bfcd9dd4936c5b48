import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petseg import storage
from petseg.config.train import TrainConfig
from petseg.data import labels
from petseg.errors import InputError, JobError
from petseg.training.trackers import Logs, flat, importlib, require_trackers, sample_sheet

EPOCH: dict[str, Any] = {"epoch": 2, "val_loss": 0.5, "val_miou": None, "val_iou": {"pet": 0.25, "border": None}}


def sheet() -> np.ndarray:
    photos = np.full((2, 4, 5, 3), 10, np.uint8)
    masks = np.zeros((2, 4, 5), np.uint8)
    masks[1, 0, 0] = 255
    return sample_sheet(photos, masks, masks * 0 + 2, labels.palette(3))


def test_sample_sheet_shows_photo_truth_and_prediction() -> None:
    found = sheet()
    assert found.shape == (8, 15, 3) and found.dtype == np.uint8
    assert (found[:, :5] == 10).all()
    assert (found[0, 5] == labels.palette(3)[0]).all() and (found[4, 5] == 255).all()
    assert (found[:, 10:] == labels.palette(3)[2]).all()


def test_logs_tensorboard_epoch_logged_twice_is_stored_once(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] - made at run time

    config = TrainConfig(name="run")
    with Logs(config, str(tmp_path)) as log:
        log.epoch(EPOCH, sheet())
        log.epoch(EPOCH, sheet())  # trained again after a kill, it replaces the first
    [file] = (tmp_path / "tensorboard").iterdir()
    assert file.name == "events.out.tfevents.0000000002.petseg"
    content, values = file.read_bytes(), {}
    while content:  # TFRecord: length, its checksum, an event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            assert event.step == 2
            values[value.tag] = value.simple_value or value.image.height
    assert values == {"val_loss": 0.5, "val_iou/pet": 0.25, "samples": 8}


def test_flat_nested_scores_get_one_name_each() -> None:
    assert flat(EPOCH) == {"val_loss": 0.5, "val_iou/pet": 0.25}


@pytest.mark.parametrize("flag", ["mlflow", "wandb"])
def test_require_trackers_missing_package_is_refused(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_trackers(TrainConfig())
    with pytest.raises(InputError, match=rf"--{flag}: it is not installed; pip install {flag}"):
        require_trackers(dataclasses.replace(TrainConfig(), **{flag: True}))


def test_require_trackers_mlflow_without_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    for address in ("", "mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(InputError, match="--mlflow: set MLFLOW_TRACKING_URI"):
            require_trackers(TrainConfig(mlflow=True))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    require_trackers(TrainConfig(mlflow=True))


def test_logs_failing_tracker_stops_in_one_line(tmp_path: Path, trackers: tuple[Any, Any]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no answer\nfrom the server")

    trackers[0].log_metrics = refuse
    with (
        pytest.raises(JobError, match=r"^--mlflow: it cannot log: no answer; --resume continues, with --no-mlflow"),
        Logs(TrainConfig(name="run", mlflow=True), str(tmp_path)) as log,
    ):
        log.epoch(EPOCH, sheet())


class Recorder(types.ModuleType):
    """Module that records the calls of its functions."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*given: Any, **named: Any) -> Any:
            self.calls.append((name, given, named))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="id-7"), log=self.log, finish=self.finish)

        return called


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, Recorder]:
    found = Recorder("mlflow"), Recorder("wandb")
    for module in found:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def test_logs_mlflow_restart_continues_its_run(tmp_path: Path, trackers: tuple[Recorder, Recorder]) -> None:
    mlflow, _ = trackers
    config = TrainConfig(name="run", mlflow=True, epochs=3)
    with Logs(config, str(tmp_path)) as log:
        log.epoch(EPOCH, sheet())
    assert [name for name, _, _ in mlflow.calls] == ["start_run", "log_params", "log_metrics", "log_image", "end_run"]
    assert mlflow.calls[1][1][0]["epochs"] == 3
    assert mlflow.calls[2][1:] == (({"val_loss": 0.5, "val_iou/pet": 0.25},), {"step": 2})
    assert storage.read(str(tmp_path / "mlflow_run_id.txt")) == b"id-7"
    mlflow.calls.clear()
    with pytest.raises(OSError, match="full"), Logs(config, str(tmp_path)):
        raise OSError("full")
    assert mlflow.calls == [("start_run", (), {"run_id": "id-7"}), ("end_run", ("FAILED",), {})]


def test_logs_wandb_restart_uses_the_same_id(tmp_path: Path, trackers: tuple[Recorder, Recorder]) -> None:
    _, wandb = trackers
    for _ in range(2):
        with Logs(TrainConfig(name="run", wandb=True), str(tmp_path)) as log:
            log.epoch(EPOCH, None)
    starts = [named for name, _, named in wandb.calls if name == "init"]
    assert len(starts) == 2 and starts[0] == starts[1] and starts[0]["resume"] == "allow"
    assert [(given, named) for name, given, named in wandb.calls if name == "log"] == 2 * [
        (({"val_loss": 0.5, "val_iou/pet": 0.25},), {"step": 2})
    ]
    assert wandb.calls[-1] == ("finish", (), {"exit_code": 0})
