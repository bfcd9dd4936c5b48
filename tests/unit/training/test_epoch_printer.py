import time
from collections.abc import Callable

import pytest

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
    with epoch_printer.EpochPrinter("run", 4) as printer:
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
    epoch_printer.notify(printer.pipe)  # the run outlives its driver: nothing happens


def test_unreadable_metrics_do_not_hide_the_error_of_the_run(
    history: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise PermissionError("the storage")

    with pytest.raises(KeyError, match="the run"), epoch_printer.EpochPrinter("run", 4):
        monkeypatch.setattr(run_folder, "read_metrics", fail)
        raise KeyError("the run")
    monkeypatch.undo()
