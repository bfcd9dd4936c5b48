"""Files of a local disk: listed, and written so that they appear whole. Only `storage` uses it."""

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from petseg.errors import InputError

T = TypeVar("T")

TEMPORARY = ".petseg-tmp-"
"""How the name begins under which a file is written before it takes its own."""


def list_files(folder: str) -> Iterator[str]:
    """As `storage.list_files`."""
    if not os.path.isdir(folder):  # noqa: PTH112
        raise InputError(f"{folder}: no such folder")

    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, below)) as entries:  # noqa: PTH118
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{below}{entry.name}/")
                    elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):  # noqa: PTH110
                        yield below + entry.name
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def write(location: str, content: bytes, scratch: str | None) -> None:
    """As `storage.write`."""
    hidden = temporary(scratch or os.path.dirname(location))  # noqa: PTH120
    try:
        write_through(hidden, content)
        in_new_folder(location, lambda: hidden.replace(location))
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def create(location: str, content: bytes) -> None:
    """Write a file that must not be there yet. Raises `FileExistsError` where it is."""
    hidden = temporary(os.path.dirname(location))  # noqa: PTH120
    try:
        write_through(hidden, content)
        try:
            os.link(hidden, location)  # unlike a rename, not over another
        except OSError as error:
            # Some file systems have no links; there it is looked for first.
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or Path(location).exists():
                raise
            hidden.replace(location)
    finally:
        hidden.unlink(missing_ok=True)


def temporary(folder: str) -> Path:
    """A name in the folder that no other file has."""
    return Path(folder) / (TEMPORARY + uuid.uuid4().hex)


def write_through(path: Path, content: bytes) -> None:
    """Write a file, making the folders it needs, and see that its bytes are on the disk."""
    with in_new_folder(path, lambda: path.open("wb")) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def in_new_folder(path: str | Path, write: Callable[[], T]) -> T:
    """Do what makes a file, its folder first where it turns out to be missing: to look each time costs more."""
    try:
        return write()
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return write()
