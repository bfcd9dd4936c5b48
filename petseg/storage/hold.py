"""Keep two jobs from writing to the same folder at the same time."""

import contextlib
import datetime
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from petseg import files, storage
from petseg.errors import InputError, JobError
from petseg.storage.lease import LAPSE_S, LOST, Lease
from petseg.storage.s3 import S3Store


@contextlib.contextmanager
def hold(folder: str, flag: str) -> Iterator[Callable[[], bool]]:
    """Hold a folder for this process in the `with` block, which gets a function that returns True as long as it does.

    A local folder is locked. The system lets go of it if the process is killed; a network file system does so for the
    processes of all machines, if it has locks. In S3 there is a lease (`lease.py`). In other object stores, and on file
    systems without locks, this does nothing.

    Raises `InputError`, naming `flag` and the holder, if another process holds the folder, and `JobError` if one has
    taken over the lease, because this process could not renew it in time.
    """
    if not storage.is_local(folder):
        with _lease(folder, flag) as is_held:
            yield is_held
        return
    with storage.as_input_error(f"{flag} {folder}: cannot be written"):
        new = [above for above in (Path(folder), *Path(folder).parents) if not above.exists()]
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = _lock(Path(folder) / files.LOCK, f"{flag} {folder}")
    held = True
    with file:
        try:
            yield lambda: held
        finally:
            held = False
            with contextlib.suppress(OSError):  # the folder was deleted, or is not empty
                Path(file.name).unlink()
                for made in new:
                    made.rmdir()


@contextlib.contextmanager
def _lease(folder: str, flag: str) -> Iterator[Callable[[], bool]]:
    store, path = storage.remote(storage.join(folder, files.LOCK))
    held = True
    if not isinstance(store, S3Store):
        try:
            yield lambda: held
        finally:
            held = False
        return
    with storage.as_input_error(f"{flag} {folder}: cannot be written"):
        lease = Lease(store, path, _describe_self(), f"{flag} {folder}")
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(LOST, _interrupt) if is_main else None
    try:
        yield lambda: held and not lease.lost_to
    except KeyboardInterrupt:
        if not lease.lost_to:
            raise
    finally:
        held = False
        lease.release()
        if is_main:
            signal.signal(LOST, before)
    if lease.lost_to:
        raise JobError(
            f"{flag} {folder}: {lease.lost_to} has taken it over, because this job did not reach the store for "
            f"{LAPSE_S:g} seconds; finished work is kept"
        )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt  # as Ctrl-C does, it ends the job's work in order


def _describe_self() -> str:
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    return f"process {os.getpid()} on {socket.gethostname()}, since {now},"


def _lock(path: Path, what: str) -> TextIO:
    """Return the locked file at `path`, which says who holds it."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another job"
            file.close()
            raise InputError(f"{what}: {holder} is writing there; wait for it or end it, or choose another") from None
        except OSError:  # no locks on this file system
            return file
        if _is_at(path, file):
            break
        file.close()  # its holder removed it just now
    file.truncate(0)
    file.write(_describe_self() + "\n")
    file.flush()
    return file


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
