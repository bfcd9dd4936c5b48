"""Print a line for each epoch while a run trains. No network and no Ray."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

from petseg.cli.json_log import is_json, log_event
from petseg.errors import STORAGE_ERRORS, InputError
from petseg.status import JobStatus
from petseg.training import run_folder


def notify(pipe: str) -> None:
    """Tell the `EpochPrinter` of this pipe that an epoch is finished. Does nothing if it has ended."""
    with contextlib.suppress(OSError):
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(descriptor, b"\n")
        finally:
            os.close(descriptor)


class EpochPrinter:
    """In the `with` block, print a line for every epoch in the run's metrics, each time that `notify(pipe)` is called.

    The metrics are read once for each call, because the run may be on S3. `status` counts the `rows` of each epoch, in
    which `unit` names them.
    """

    def __init__(self, run: str, epochs: int, status: JobStatus, rows: int, unit: str = "images") -> None:
        self._run, self._epochs, self._status, self._rows = run, epochs, status, rows
        history = run_folder.read_metrics(run)
        self._num_printed = len(history)
        status.count(epochs * rows, self._num_printed * rows, unit=unit)
        self._note_epoch(history[-1] if history else {"epoch": 0})
        self._first: tuple[int, float] | None = None  # number of the first epoch, and when it was seen
        self.pipe = ""
        """Path of a named pipe on this machine, in the `with` block."""
        self._ended = False
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.pipe = str(Path(tempfile.mkdtemp(prefix="petseg-epochs-")) / "epochs")
        os.mkfifo(self.pipe)
        self._descriptor = os.open(self.pipe, os.O_RDWR)  # also for writing, so that a read waits for the next writer
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended = True
        notify(self.pipe)
        self._watcher.join()
        os.close(self._descriptor)
        shutil.rmtree(Path(self.pipe).parent, ignore_errors=True)
        # The error that ended the training must not be replaced by another.
        with contextlib.suppress(InputError, *STORAGE_ERRORS) if kind else contextlib.nullcontext():
            self._print_new()

    def _watch(self) -> None:
        while os.read(self._descriptor, 1) and not self._ended:
            # If storage fails, the next read catches up, and the last one raises.
            with contextlib.suppress(InputError, *STORAGE_ERRORS):
                self._print_new()

    def _print_new(self) -> None:
        history = run_folder.read_metrics(self._run)
        now = time.monotonic()
        for epoch in history[self._num_printed :]:
            number, since = self._first = self._first or (epoch["epoch"], now)
            seconds_per_epoch = (now - since) / max(1, epoch["epoch"] - number)
            # An epoch's own seconds do not include its checkpoint. They are all there is if epochs are seen at once.
            seconds_per_epoch = max(seconds_per_epoch, epoch["seconds"])
            self._status.add(self._rows)
            self._note_epoch(epoch)
            if is_json():
                log_event("epoch", epochs=self._epochs, **epoch)
            else:
                print(run_folder.describe(epoch, self._epochs, seconds_per_epoch), flush=True)
        self._num_printed = len(history)

    def _note_epoch(self, epoch: dict[str, Any]) -> None:
        self._status.finish_epoch(epoch["epoch"], self._epochs, epoch.get("val_loss"), epoch.get("val_miou"))
