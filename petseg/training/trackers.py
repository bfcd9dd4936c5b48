"""Log a run to experiment trackers: always to TensorBoard, and on request to MLflow and Weights & Biases.

TensorBoard gets one file per epoch, written whole. That works on an object store, which cannot append. An epoch that is
trained again after a kill replaces its own file.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from petseg import storage
from petseg.config.train import TrainConfig
from petseg.errors import InputError, JobError

_FOLDER = "tensorboard"


def require_trackers(config: TrainConfig) -> None:
    """Raise `InputError`, naming the flag, if a requested tracker is not installed or MLflow's server is not set.

    By default MLflow would log into the folder of a worker, where nobody finds it.
    """
    for flag in ("mlflow", "wandb"):
        if getattr(config, flag) and importlib.util.find_spec(flag) is None:
            raise InputError(f"--{flag}: it is not installed; pip install {flag}, on every node, or leave it out")
    if config.mlflow and "://" not in os.environ.get("MLFLOW_TRACKING_URI", ""):
        raise InputError(
            "--mlflow: set MLFLOW_TRACKING_URI to its server's address (on a cluster where Ray's nodes are started, "
            "too), such as http://host:5000"
        )


def sample_sheet(
    photos_nhwc: np.ndarray, masks: np.ndarray, predicted: np.ndarray, palette: tuple[tuple[int, int, int], ...]
) -> np.ndarray:
    """Return photos, masks and predictions side by side, one row for each photo: uint8 (n · H, 3 · W, 3).

    Photos are uint8 (n, H, W, 3). Masks and predictions are class ids, uint8 (n, H, W). Ignored pixels are white.
    """
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(palette)] = palette
    columns = [photos_nhwc, colours[masks], colours[predicted]]
    return np.concatenate([column.reshape(-1, *column.shape[2:]) for column in columns], axis=1)


class Logs:
    """Trackers of one run, open inside the `with` block. Only one process of the run uses them."""

    def __init__(self, config: TrainConfig, run: str) -> None:
        self._run = run
        self._mlflow: Any = None
        self._wandb: Any = None
        if config.mlflow:
            with _tracking("mlflow"):
                self._mlflow = _start_mlflow(config, run)
        if config.wandb:
            with _tracking("wandb"):
                self._wandb = _start_wandb(config, run)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._mlflow is not None:
            self._mlflow.end_run("FINISHED" if kind is None else "FAILED")
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def epoch(self, metrics: dict[str, Any], sheet: np.ndarray | None) -> None:
        """Log an epoch: its metrics, as in `metrics.jsonl`, and its sample sheet, uint8 (H, W, 3), if any.

        Raises `OSError` if storage fails, and `JobError` if a tracker fails.
        """
        number = metrics["epoch"]
        scalars = flat(metrics)
        content = _event_file(number, scalars, sheet)
        name = f"events.out.tfevents.{number:010}.petseg"  # TensorBoard reads files in the order of their names
        storage.write(storage.join(self._run, _FOLDER, name), content)
        if self._mlflow is not None:
            with _tracking("mlflow"):
                self._mlflow.log_metrics(scalars, step=number)
                if sheet is not None:
                    self._mlflow.log_image(sheet, key="samples", step=number)
        if self._wandb is not None:
            with _tracking("wandb"):
                wandb = importlib.import_module("wandb")
                samples = {} if sheet is None else {"samples": wandb.Image(sheet)}
                self._wandb.log(scalars | samples, step=number)


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of an epoch as a flat dict: nested values get names such as "val_iou/pet". Skips None."""
    numbers = {}
    for name, value in metrics.items():
        for inner, number in value.items() if isinstance(value, dict) else [("", value)]:
            if number is not None and name != "epoch":
                numbers[f"{name}/{inner}" if inner else name] = float(number)
    return numbers


@contextlib.contextmanager
def _tracking(flag: str) -> Iterator[None]:
    """Convert any exception of a tracker, of whatever type, to a `JobError` of one line.

    The run can be resumed after a fix, or without the tracker.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise JobError(f"--{flag}: it cannot log: {reason}; --resume continues, with --no-{flag} without it") from error


def _event_file(step: int, scalars: dict[str, float], sheet: np.ndarray | None) -> bytes:
    from tensorboardX import SummaryWriter  # imported here, so that `--help` does not wait for it

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder, write_to_disk=True) as writer:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)
            if sheet is not None:
                writer.add_image("samples", sheet, step, dataformats="HWC")
        [file] = Path(folder).iterdir()
        return file.read_bytes()


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "resume"}


def _start_mlflow(config: TrainConfig, run: str) -> Any:
    """Start MLflow's run. After a kill it is resumed by its id, which is saved beside the checkpoints."""
    mlflow = importlib.import_module("mlflow")
    noted = storage.join(run, "mlflow_run_id.txt")
    if "mlflow_run_id.txt" in storage.list_names(run):
        mlflow.start_run(run_id=storage.read(noted).decode())
        return mlflow
    started = mlflow.start_run(run_name=config.name)
    mlflow.log_params(_settings(config))
    storage.write(noted, started.info.run_id.encode())
    return mlflow


def _start_wandb(config: TrainConfig, run: str) -> Any:
    """Start W&B's run. After a kill it is resumed, because its id follows from the run's location."""
    wandb = importlib.import_module("wandb")
    run_id = hashlib.sha256(run.encode()).hexdigest()[:16]
    return wandb.init(id=run_id, name=config.name, config=_settings(config), resume="allow")
