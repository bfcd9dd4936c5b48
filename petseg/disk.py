"""Files of a local disk: listed, and written so that they appear whole. Only `storage` uses it."""

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
