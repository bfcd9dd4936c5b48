"""Status of a job, in status.json beside its output, for people and programs that watch it. Knows nothing of Ray.

A thread of the job writes the file every ten seconds: its time stamp is the heartbeat of the job. Without one, the job
was killed or has lost its storage. A status that cannot be written neither stops nor delays the job.
"""

import dataclasses
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from petseg import files, storage
from petseg.background import start_thread
from petseg.config.base import from_json
from petseg.errors import STORAGE_ERRORS, InputError, UnavailableError
from petseg.progress import Rate

INTERVAL_S = 10.0
"""Seconds between two heartbeats."""

LOST_S = 60.0
"""Seconds without a heartbeat after which a job counts as killed. A heartbeat may be late, as storage retries."""

END_S = 5.0
"""Maximum seconds for which the end of a job waits for storage to take the last status."""

WAITING = "waiting for nodes"

End = Literal["finished", "stopped", "failed"]
"""Last phase of a job: exit code 0; exit code 1, or ended by Ctrl-C or a signal, after which the same
command continues; any other exit code."""

_ENDS = ("finished", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class Status:
    """Content of status.json."""

    job: str
    """Command, such as "predict"."""
    phase: str
    """Present work of the job, such as "predicting", or an `End`."""
    done: int = 0
    """Photos that are done, earlier starts of the job included; in training, those of all epochs."""
    failed: int = 0
    """Photos among them that have failed."""
    done_before: int = 0
    """Photos that earlier starts of the job had done, and below, those of them that had failed."""
    failed_before: int = 0
    total: int | None = None
    """Photos in all, or None while that is not known."""
    unit: str = "images"
    """Name of what is counted: "images", "pairs" or "crops"."""
    rate: float | None = None
    """Photos per second over the last minute, or None if nothing was done."""
    eta_s: int | None = None
    """Seconds until the end at this rate."""
    waiting_for: int = 0
    """Processes for which the cluster has no room yet."""
    epoch: int | None = None
    """Finished epochs of a training run, and below, the number of epochs and the scores of the last one."""
    epochs: int | None = None
    val_loss: float | None = None
    val_miou: float | None = None
    started: str
    """Time at which this start of the job began, and below, that of this status: UTC, ISO 8601."""
    heartbeat: str
    host: str
    pid: int
    exit_code: int | None = None
    """Exit code of the job, or None while it runs."""
    reason: str = ""
    """Reason why the job was stopped or has failed, in one line."""


class JobStatus:
    """Status of this process's job. Its methods return at once and may be called from any thread.

    `folder` is the output of the job, which it must hold (`storage.hold`). `is_held` returns False once another job may
    be writing there; then nothing more is written. No file is written before `enter`: a job that is refused, or has
    nothing to do, leaves the folder as it is.
    """

    def __init__(self, job: str, folder: str, is_held: Callable[[], bool] = lambda: True) -> None:
        self.folder = folder
        self._location, self._is_held = storage.join(folder, files.STATUS), is_held
        now = _now()
        self._status = Status(
            job=job, phase="starting", started=now, heartbeat=now, host=socket.gethostname(), pid=os.getpid()
        )
        self._rate: Rate | None = None
        self._listeners: list[Callable[[Status], None]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._restore = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def subscribe(self, listener: Callable[[Status], None]) -> None:
        """Call `listener` with each heartbeat, from another thread."""
        self._listeners.append(listener)

    def enter(self, phase: str) -> None:
        """Begin the next phase of the job. With the first one, the heartbeat starts."""
        self._set(phase=phase)
        if self._thread is None:
            self._start()

    def count(self, total: int, done: int = 0, failed: int = 0, unit: str = "images") -> None:
        """Set the numbers at which the job's work begins. `done` is what earlier starts have done."""
        with self._lock:
            self._rate = Rate(done)
        self._set(total=total, done=done, failed=failed, done_before=done, failed_before=failed, unit=unit)

    def add(self, done: int, failed: int = 0) -> None:
        """Count `done` more photos, of which `failed` have failed."""
        with self._lock:
            status = self._status
            self._status = dataclasses.replace(status, done=status.done + done, failed=status.failed + failed)
            if self._rate is not None:
                self._rate.update(self._status.done)

    def wait(self, waiting_for: int) -> None:
        """Note that the cluster has no room for so many processes yet. With 0, the wait is over."""
        self._set(waiting_for=waiting_for)

    def finish_epoch(self, epoch: int, epochs: int, val_loss: float | None, val_miou: float | None) -> None:
        """Note the last finished epoch of a training run and its scores."""
        self._set(epoch=epoch, epochs=epochs, val_loss=val_loss, val_miou=val_miou)

    def get(self) -> Status:
        """Return the status at this moment."""
        with self._lock:
            status, rate = self._status, self._rate and self._rate.per_second()
        if status.phase in _ENDS:
            return status
        left = (status.total or 0) - status.done
        return dataclasses.replace(
            status,
            phase=WAITING if status.waiting_for else status.phase,
            rate=rate and round(rate, 3),
            eta_s=round(left / rate) if rate else None,
            heartbeat=_now(),
        )

    def end(self, phase: End, exit_code: int, reason: str = "") -> None:
        """Write the last status, and wait for it for at most `END_S` seconds. Prints a note if it cannot be written.

        If the job ends on invalid input before it has begun to count, the file is as it was before. If it found nothing
        to do, the file is only written if it says otherwise, because its job was killed at the very end.
        """
        if self._thread is None and phase != "finished":
            return
        self._restore = exit_code == 2 and self._status.total is None
        self._set(phase=phase, exit_code=exit_code, reason=reason, waiting_for=0, heartbeat=_now())
        self._ended.set()
        if self._thread is None:
            self._start(is_idle=True)
        assert self._thread is not None
        self._thread.join(END_S)
        error: Exception | None = self._error
        if self._thread.is_alive():
            error = UnavailableError(f"no answer for {END_S:g} seconds")
        if error is not None:
            reason = storage.reason(error) if isinstance(error, STORAGE_ERRORS) else repr(error)
            print(f"note: {self._location} cannot be written: {reason}")

    def _set(self, **values: Any) -> None:
        with self._lock:
            self._status = dataclasses.replace(self._status, **values)

    def _start(self, *, is_idle: bool = False) -> None:
        self._thread = start_thread("petseg-status", self._keep, is_idle)

    def _keep(self, is_idle: bool) -> None:
        """Write the status until the job has ended. If that found nothing to do, `is_idle` is True."""
        before = self._read()
        if is_idle and before and _is_finished(before):
            return
        is_last = False
        while not is_last:
            is_last = self._ended.is_set()
            try:
                status = self.get()
                for listener in self._listeners:
                    listener(status)
                if is_last and self._restore and before is not None:
                    self._write(before)
                else:
                    self._write(_to_json(status))
                self._error = None
            except Exception as error:  # a status must not end the job, not even by a bug
                self._error = error
            if not is_last:
                self._ended.wait(INTERVAL_S)

    def _read(self) -> bytes | None:
        """Return the content of the file, b"" if there is none, and None if storage does not tell."""
        try:
            return storage.read(self._location)
        except (FileNotFoundError, PermissionError):  # in S3, without the permission to list, a missing file is denied
            return b""
        except STORAGE_ERRORS:
            return None

    def _write(self, content: bytes) -> None:
        """Write the file, or remove it if `content` is b""."""
        if not self._is_held():
            return
        if content:
            storage.write(self._location, content)
        else:
            storage.remove_file(self._location)


def read_status(folder: str) -> Status:
    """Return the status in a folder. Raises `InputError` if there is none, or it is not valid."""
    location = storage.join(folder, files.STATUS)
    try:
        content = storage.read(location)
    except FileNotFoundError as error:
        raise InputError(f"{folder}: it has no {files.STATUS}; give the output of a job, or a run") from error
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {storage.reason(error)}") from error
    return from_json(Status, content, location)


def seconds_since(time: str) -> float:
    """Return the seconds that have passed since a time stamp of a status."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


def _to_json(status: Status) -> bytes:
    return (json.dumps(dataclasses.asdict(status), indent=2) + "\n").encode()


def _is_finished(content: bytes) -> bool:
    try:
        return from_json(Status, content, files.STATUS).phase == "finished"
    except InputError:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
