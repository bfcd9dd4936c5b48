"""Reports of a training run: they neither fail a finished run nor hide the error that ended one."""

from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest

from petseg.config.train import TrainConfig
from petseg.errors import JobError
from petseg.jobs import train
from petseg.models import checkpoint
from petseg.progress import Clock
from petseg.status import JobStatus
from petseg.training import fit, run_folder


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Arguments of `train._train`, whose training does nothing and whose report has a bug."""
    config = TrainConfig(storage=str(tmp_path), name="run")
    run = str(tmp_path / "run")
    setup, pairs = (
        mock.Mock(run=run, config=config),
        mock.Mock(images="photos", parts={"train": pa.table({"id": ["a"]}), "val": pa.table({"id": ["b"]})}),
    )
    setup.train.num_rows = setup.val.num_rows = 1
    best = mock.Mock(epoch=1, history=[{"val_loss": 1.0, "val_miou": 0.5}])
    monkeypatch.setattr(train, "_set_up", lambda *_: setup)
    monkeypatch.setattr(run_folder, "begin", lambda *_: None)
    monkeypatch.setattr(run_folder, "read_metrics", lambda _: [{"epoch": 1}])
    monkeypatch.setattr(train, "EpochPrinter", mock.MagicMock())
    monkeypatch.setattr(checkpoint, "best", lambda _: best)
    monkeypatch.setattr(checkpoint, "load_model", mock.Mock(side_effect=AttributeError("a bug")))
    monkeypatch.setattr(train, "training_page", mock.Mock(side_effect=AttributeError("a bug")))
    return [config, run, pairs, Clock(), JobStatus("train", run), config.epochs]


def test_train_bug_in_the_report_does_not_fail_a_finished_run(
    prepared: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "fit", lambda *_, **__: None)
    train._train(*prepared)
    printed = capsys.readouterr().out
    assert "report.html cannot be written: AttributeError('a bug')" in printed
    assert "best: epoch 1, val loss 1.000" in printed


@pytest.mark.parametrize("cause", [JobError("the cause"), KeyboardInterrupt(), ValueError("the cause")])
def test_train_bug_in_the_report_does_not_hide_the_error_of_the_run(
    cause: BaseException, prepared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "fit", mock.Mock(side_effect=cause))
    with pytest.raises(type(cause)) as caught:
        train._train(*prepared)
    if not isinstance(cause, KeyboardInterrupt):
        assert caught.value is cause
