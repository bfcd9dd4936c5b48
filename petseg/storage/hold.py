"""Keep two jobs on one machine from writing to the same folder."""

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from petseg import files, storage
from petseg.errors import InputError


@contextlib.contextmanager
def hold(folder: str, flag: str) -> Iterator[None]:
    """Hold a local folder for this process in the `with` block. The system lets go of it if the process is killed.

    Does nothing in object stores, and on file systems without locks. Raises `InputError`, naming `flag` and the holder,
    if another process holds the folder.
    """
    if not storage.is_local(folder):
        yield
        return
    with storage.as_input_error(f"{flag} {folder}: cannot be written"):
        new = [above for above in (Path(folder), *Path(folder).parents) if not above.exists()]
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = _lock(Path(folder) / files.LOCK, f"{flag} {folder}")
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder was deleted, or is not empty
                Path(file.name).unlink()
                for made in new:
                    made.rmdir()


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
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now},\n")
    file.flush()
    return file


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
