"""Files on a local disk: listing and atomic writing. Only `storage` imports this module."""

import contextlib
import errno
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from petseg.errors import InputError

T = TypeVar("T")

TEMPORARY = ".petseg-tmp-"
"""Prefix of the temporary name under which a file is written before it is renamed."""


def list_files(folder: str, skipped: Counter[str]) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Do as `storage.list_files`, but yield (path, entry) of every file."""
    if os.path.isfile(folder):  # noqa: PTH113
        raise InputError(f"{folder}: it is a file; give the folder that contains it")
    if not os.path.isdir(folder):  # noqa: PTH112
        raise InputError(f"{folder}: no such folder")

    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        below, above = waiting.pop()
        try:
            found = os.stat(os.path.join(folder, below))  # noqa: PTH116, PTH118
            if (found.st_dev, found.st_ino) in above:
                skipped["link to a folder that contains it"] += 1
                continue
            above |= {(found.st_dev, found.st_ino)}
            with os.scandir(os.path.join(folder, below)) as entries:  # noqa: PTH118
                for entry in entries:
                    if entry.name.startswith("."):
                        skipped["hidden"] += 1
                    elif entry.is_dir():
                        waiting.append((f"{below}{entry.name}/", above))
                    elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):  # noqa: PTH110
                        yield below + entry.name, entry
                    else:
                        skipped["pipe or device"] += 1
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def version(file: "os.DirEntry[str] | Path") -> str:
    """Do as `storage.version`."""
    try:
        found = file.stat()
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def write(location: str, content: bytes, scratch: str | None) -> None:
    """Do as `storage.write`."""
    hidden = temporary(scratch or os.path.dirname(location))  # noqa: PTH120
    try:
        write_through(hidden, content)
        in_new_folder(location, lambda: hidden.replace(location))
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def create(location: str, content: bytes) -> None:
    """Write a file that must not exist yet. Raises `FileExistsError` if it does."""
    hidden = temporary(os.path.dirname(location))  # noqa: PTH120
    try:
        write_through(hidden, content)
        try:
            os.link(hidden, location)  # unlike a rename, a link never replaces an existing file
        except OSError as error:
            # Some file systems have no hard links. There, check for the file, then rename.
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or Path(location).exists():
                raise
            hidden.replace(location)
    finally:
        hidden.unlink(missing_ok=True)


def temporary(folder: str) -> Path:
    """Return the path of a new, unique temporary file in the folder."""
    return Path(folder) / (TEMPORARY + uuid.uuid4().hex)


def write_through(path: Path, content: bytes) -> None:
    """Write a file, create its parent folders, and flush its content to the disk."""
    with in_new_folder(path, lambda: path.open("wb")) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def in_new_folder(path: str | Path, write: Callable[[], T]) -> T:
    """Run `write`; on `FileNotFoundError` create the parent folder and retry (cheaper than checking first)."""
    try:
        return write()
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return write()


def flush_folder(folder: str) -> None:
    """Flush the directory entries of a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_empty_folders(folder: str) -> None:
    """Do as `storage.remove_empty_folders`."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            Path(path).rmdir()


def remove_leftovers(scratch: str) -> None:
    """Do as `storage.remove_leftovers`."""
    for path in Path(scratch).glob(TEMPORARY + "*"):
        # An orphaned worker of a killed driver may rename its file in the meantime.
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
