"""Lease on a folder in S3, so that two jobs do not write there at the same time. Only `hold` imports this module.

The lease is an object that names its holder. The holder replaces it every `BEAT_S` seconds, on the condition that it is
still its own. Another job takes it over once it has lapsed: it has not changed for `LAPSE_S` seconds. How long is
judged by the store's clock alone, or by how long this process has been looking, so a wrong clock does no harm. On the
holder's own machine it is known whether the holder still runs.
"""

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from petseg.background import start_thread
from petseg.errors import STORAGE_ERRORS, InputError
from petseg.storage.s3 import S3Store

BEAT_S = 10.0
LAPSE_S = 60.0

LOST = signal.SIGUSR2
"""Signal to the main thread if the lease is lost. Not SIGINT, because a shell may have that ignored."""

_POLL_S = 1.0


class Lease:
    """Lease of this process at a path. `holder` describes the process, and `what` begins an error."""

    def __init__(self, store: S3Store, path: str, holder: str, what: str) -> None:
        self._store, self._path, self._what = store, path, what
        self._entry = {"holder": holder, "token": uuid.uuid4().hex, "process": _identity(os.getpid())}
        self._beats = 0
        self._stop = threading.Event()
        self.lost_to = ""
        """Holder that has taken the lease over from this process."""
        self._etag = self._acquire()
        self._thread = start_thread("petseg-lease", self._keep)

    def release(self) -> None:
        """Give the lease back. If the store does not answer, it lapses."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(*STORAGE_ERRORS):
            if self._is_own(self._store.read(self._path)):
                self._store.remove_file(self._path)

    def _acquire(self) -> str:
        """Return the ETag of the acquired lease. Raises `InputError` if another process holds it."""
        first_etag, started, has_told = None, time.monotonic(), False
        while True:
            with contextlib.suppress(FileExistsError):
                return self._store.create(self._path, self._content())
            try:
                content, etag, age_s = self._store.read_tagged(self._path)
                if self._is_own(content):  # boto3 has repeated a request whose response was lost
                    return etag
                holder, is_alive = _describe(content)
                first_etag = first_etag or etag
                if is_alive or (is_alive is None and etag != first_etag):
                    raise InputError(
                        f"{self._what}: {holder} is writing there; wait for it or end it, or choose another"
                    )
                if is_alive is False or max(age_s, time.monotonic() - started) > LAPSE_S:
                    return self._store.replace(self._path, self._content(), etag)
            except (FileNotFoundError, FileExistsError):  # given back, or taken over by another
                first_etag, started = None, time.monotonic()
                continue
            if not has_told:
                print(f"waiting up to {LAPSE_S:g} s to see whether {holder} is still there", flush=True)
                has_told = True
            time.sleep(_POLL_S)

    def _keep(self) -> None:
        """Renew the lease until it is given back or lost."""
        while not self._stop.wait(BEAT_S):
            self._beats += 1
            try:
                self._renew()
            except STORAGE_ERRORS:
                continue  # the next beat may succeed
            if self.lost_to:
                signal.pthread_kill(threading.main_thread().ident or 0, LOST)
                return

    def _renew(self) -> None:
        try:
            self._etag = self._store.replace(self._path, self._content(), self._etag)
        except (FileExistsError, FileNotFoundError):
            self._recover()

    def _recover(self) -> None:
        """Find out who has changed the lease. boto3 may have: it repeats a request whose response was lost."""
        try:
            content, etag, _ = self._store.read_tagged(self._path)
        except FileNotFoundError:  # somebody has deleted it
            with contextlib.suppress(FileExistsError):
                self._etag = self._store.create(self._path, self._content())
            return
        if self._is_own(content):
            self._etag = etag
        else:
            self.lost_to = _describe(content)[0]

    def _content(self) -> bytes:
        return json.dumps(self._entry | {"beats": self._beats}).encode()

    def _is_own(self, content: bytes) -> bool:
        return _parse(content).get("token") == self._entry["token"]


def _describe(content: bytes) -> tuple[str, bool | None]:
    """Return (holder of a lease, whether it still runs), None if it runs on another machine."""
    entry, own = _parse(content), _identity(os.getpid())
    holder, process = str(entry.get("holder", "another job")), entry.get("process")
    if own is None or not isinstance(process, list) or process[:2] != own[:2]:
        return holder, None
    return holder, _identity(process[2]) == process


def _parse(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        entry = json.loads(content)
        if isinstance(entry, dict):
            return entry
    return {}


def _identity(pid: int) -> list[Any] | None:
    """Return (boot of this machine, its namespace of process ids, pid, start time); None if no such process runs.

    The start time tells a process from a later one with the same id. A killed process has an entry in /proc until its
    parent asks for its exit code: for ever, if that is a container's first process that never does.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        state, started = stat[0], stat[19]
    except (OSError, IndexError):
        return None
    return None if state in "ZX" else [boot, namespace, pid, started]
