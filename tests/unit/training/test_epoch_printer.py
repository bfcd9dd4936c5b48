import contextlib
import io
import json
import time
from collections.abc import Callable

import pytest

from petseg.cli.json_log import set_log_format
from petseg.status import JobStatus
from petseg.training import epoch_printer, run_folder

SCORES: dict[str, object] = {"val_loss": 1.0, "val_pixel_accuracy": 1.0, "val_miou": 1.0, "val_iou": {}}
EPOCH: dict[str, object] = {"train_loss": 1.0, **SCORES, "train_images_per_s": 1.0, "seconds": 2.0}


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Epochs that the run has finished, of which the first was there before."""
    found: list[dict[str, object]] = [{"epoch": 1} | EPOCH]
    monkeypatch.setattr(run_folder, "read_metrics", lambda _: list(found))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_epochs_are_printed_when_the_run_tells_and_not_before(
    history: list[dict[str, object]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, printed = [], []

    def read_metrics(run: str) -> list[dict[str, object]]:
        reads.append(run)
        return list(history)

    def lines() -> list[str]:
        printed.extend(capsys.readouterr().out.splitlines())
        return printed

    monkeypatch.setattr(run_folder, "read_metrics", read_metrics)
    status = JobStatus("train", "run")
    with epoch_printer.EpochPrinter("run", 4, status, 30) as printer:
        history.append({"epoch": 2} | EPOCH)
        epoch_printer.notify(printer.pipe)
        wait_for(lambda: len(lines()) == 1)
        history.append({"epoch": 3} | EPOCH)
        time.sleep(0.3)
        assert len(reads) == 2, "the metrics may be on S3: no polling"
        epoch_printer.notify(printer.pipe)
        wait_for(lambda: len(lines()) == 2)
        history.append({"epoch": 4} | EPOCH)  # its notice is lost
    assert [line.split()[1] for line in lines()] == ["2/4", "3/4", "4/4"]
    found = status.get()
    assert (found.done_before, found.done, found.total) == (30, 120, 120)
    assert (found.epoch, found.epochs, found.val_loss, found.val_miou) == (4, 4, 1.0, 1.0)
    epoch_printer.notify(printer.pipe)  # the run outlives its driver: nothing happens


def test_unreadable_metrics_do_not_hide_the_error_of_the_run(
    history: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise PermissionError("the storage")

    with pytest.raises(KeyError, match="the run"), epoch_printer.EpochPrinter("run", 4, JobStatus("train", "run"), 30):
        monkeypatch.setattr(run_folder, "read_metrics", fail)
        raise KeyError("the run")
    monkeypatch.undo()


def test_epochs_json_log_has_an_object_with_all_metrics(history: list[dict[str, object]]) -> None:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        set_log_format("json", "train")
        with epoch_printer.EpochPrinter("run", 2, JobStatus("train", "run"), 30):
            history.append({"epoch": 2} | EPOCH)
    [line] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert line.pop("time")
    assert line == {"job": "train", "event": "epoch", "epoch": 2, "epochs": 2} | EPOCH


def test_epochs_status_before_the_first_epoch_has_their_number(
    history: list[dict[str, object]],
) -> None:
    history.clear()
    status = JobStatus("train", "run")
    epoch_printer.EpochPrinter("run", 3, status, 30)
    assert (status.get().epoch, status.get().epochs, status.get().val_loss) == (0, 3, None)
