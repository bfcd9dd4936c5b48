"""Print a line for each epoch while a run trains, from the metrics that it writes. No network and no Ray."""

import contextlib
import threading
import time

from petseg.errors import STORAGE_ERRORS, InputError
from petseg.training import run_folder

_POLL_S = 1.0
"""Seconds between two reads of the metrics."""


class EpochPrinter:
    """Print a line for every epoch that appears in the run's metrics, inside the `with` block."""

    def __init__(self, run: str, epochs: int) -> None:
        self._run, self._epochs = run, epochs
        self._num_printed = len(run_folder.read_metrics(run))
        self._first: tuple[int, float] | None = None  # number of the first epoch, and when it was seen
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._watcher.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._watcher.join()
        # The error that ended the training must not be replaced by another.
        with contextlib.suppress(InputError, *STORAGE_ERRORS) if kind else contextlib.nullcontext():
            self._print_new()

    def _watch(self) -> None:
        while not self._ended.wait(timeout=_POLL_S):
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
            print(run_folder.describe(epoch, self._epochs, max(seconds_per_epoch, epoch["seconds"])), flush=True)
        self._num_printed = len(history)
