"""Paths and URIs: the one place that knows whether a file is local or in an object store.

A location is a string: a local path, or a URI such as s3://bucket/key, gs://, file://. Listing, reading and writing
whole files are here, of a local disk all of it, of object stores what `objects` does; what the bytes mean is not.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import urllib.parse
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from petseg.errors import InputError, NoSuchPlaceError, UnavailableError
from petseg.storage import arrow, local

_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")

_AHEAD = 16
"""Files that an object store is asked for at a time: at 30 ms each, 500 a second."""


def absolute(location: str) -> str:
    """`location` such that it means the same in another working directory, without a slash at its end.

    Ray's workers change theirs, so every location is made absolute on the driver. Raises `InputError` where a URI has
    no bucket, or credentials in it, which would end up in logs and in the settings of a run.
    """
    if _URI.match(location):
        parts = urllib.parse.urlsplit(location)
        if parts.scheme == "file":
            return os.path.abspath(urllib.parse.unquote(parts.path))  # noqa: PTH100
        if "@" in parts.netloc or not parts.netloc or parts.query:
            # Not shown: it may hold a secret.
            raise InputError(
                f"{parts.scheme}://…: scheme://bucket/prefix is expected, without credentials or options; they come "
                "from the environment (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, …)"
            )
        if {".", ".."} & set(parts.path.split("/")):
            raise InputError(f"{location}: a key with . or .. for a part; give the place itself")
        return parts.scheme + location[len(parts.scheme) :].rstrip("/")
    return os.path.abspath(os.path.expanduser(location))  # noqa: PTH100, PTH111 - as text: ".." must go too


def is_local(location: str) -> bool:
    """Whether an absolute location is a path on this machine's disk."""
    return not _URI.match(location)


def join(location: str, *parts: str) -> str:
    """The location of a file below a folder."""
    return "/".join([location.rstrip("/"), *parts])


def list_files(folder: str) -> Iterator[str]:
    """The path below `folder` of every file in it, at any depth, in no particular order.

    Hidden files and folders (a leading dot) are passed over: operating systems and editors leave them everywhere.
    Links to folders are not followed, since a circle would never end; nor are pipes and devices files.

    Raises `InputError` where there is no such folder or it cannot be read.
    """
    if is_local(folder):
        yield from local.list_files(folder)
        return
    store, path = remote(folder)
    with refused(f"{folder}: cannot be listed"):
        for below in store.list_files(path):
            if not any(part.startswith(".") for part in below.split("/")):
                yield below


def list_names(folder: str) -> list[str]:
    """The sorted names of the files and folders directly in `folder`; none where it does not exist, or is a file.

    Raises `InputError` where it cannot be listed.
    """
    with refused(f"{folder}: cannot be listed"):
        if not is_local(folder):
            store, path = remote(folder)
            return sorted(store.list_names(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(folder))  # noqa: PTH208
        return []


def read(location: str, at_most: int | None = None) -> bytes:
    """The whole content of a file. Raises `OSError` (`FileNotFoundError` where there is none), also where it has more
    than `at_most` bytes, before they are read.
    """
    if not is_local(location):
        store, path = remote(location)
        return store.read(path, at_most)
    with Path(location).open("rb") as file:
        if at_most is not None and file.seek(0, os.SEEK_END) > at_most:
            raise OSError(errno.EFBIG, f"it has more than {at_most} bytes")
        file.seek(0)
        return file.read()


def read_each(locations: Iterable[str], at_most: int | None = None) -> Iterator[bytes | OSError]:
    """The contents of files, in order; of one that cannot be read, why.

    Storage may take long to answer, and answers many at once: it is asked ahead. Raises `UnavailableError` where it
    does not answer at all, which is not the fault of one file.
    """
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for location in locations:
            waiting.append(pool.submit(read, location, at_most))
            if len(waiting) > _AHEAD:
                yield _content(waiting.popleft())
        while waiting:
            yield _content(waiting.popleft())


def _content(reading: Future[bytes]) -> bytes | OSError:
    try:
        return reading.result()
    except UnavailableError:
        raise
    except OSError as error:
        return error


def read_json(location: str) -> Any:
    """The content of a JSON file. Raises `InputError` where it is none, or cannot be read, and `UnavailableError`."""
    try:
        return json.loads(read(location))
    except UnavailableError:
        raise
    except ValueError as error:  # also bytes that are not UTF-8
        raise InputError(f"{location}: not JSON ({error}); was it edited, or cut short?") from error
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error


def parse_parquet(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table, or some columns, of a Parquet file's content; in this thread alone: a process that ends while one of
    Arrow's has a Python object to give back is aborted, which cost one in ten short jobs their exit code."""
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(columns, use_threads=False)


def open_file(location: str) -> pa.NativeFile:
    """A file for reading here and there, such as a Parquet footer. Raises `OSError` as `read` does."""
    if is_local(location):
        return pa.OSFile(location)
    store, path = remote(location)
    return store.open_file(path)


def write(location: str, content: bytes, scratch: str | None = None) -> None:
    """Write a whole file, making the folders it needs; it appears complete or not at all.

    Locally the bytes go to a hidden file in the folder `scratch` (default: the file's own; it must be on the same
    disk), are flushed to the disk, and then take the name. So a killed process leaves its half file there and
    nowhere else, and `remove_leftovers(scratch)` is all the cleaning. An object store shows a put only when it is
    complete.
    """
    if is_local(location):
        local.write(location, content, scratch)
    else:
        store, path = remote(location)
        store.write(path, content)


def create(location: str, content: bytes, flag: str) -> None:
    """Write a file that must not be there yet: of two processes that try, one is refused.

    An object store that has no conditional writes is asked first, which two within the same moment can pass.
    Raises `InputError`, naming `flag`, where it is there, or where the folder cannot be written.
    """
    try:
        if is_local(location):
            local.create(location, content)
        else:
            store, path = remote(location)
            store.create(path, content)
    except FileExistsError as error:
        raise InputError(f"{flag}: {location} is there already; was another job started just now?") from error
    except UnavailableError:
        raise
    except OSError as error:
        raise InputError(f"{flag}: {location} cannot be written: {reason(error)}") from error


def write_folder(location: str, files: dict[str, bytes]) -> None:
    """Write a new folder of files; it appears complete or not at all.

    Locally the folder is renamed into place. An object store has no folders, so there the last file of `files` is
    put last, and a reader takes the folder for complete only where that one is there.
    """
    if not is_local(location):
        for name, content in files.items():
            write(join(location, name), content)
        return
    temporary = local.temporary(os.path.dirname(location))  # noqa: PTH120
    try:
        for name, content in files.items():
            local.write_through(temporary / name, content)
        temporary.rename(location)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush_folders(folders: Iterable[str]) -> None:
    """See that the names in some local folders survive a power cut, as the contents of `write` do already."""
    for folder in folders:
        if is_local(folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove_file(location: str) -> None:
    """Delete a file; no error where there is none."""
    if is_local(location):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            Path(location).unlink()
        return
    store, path = remote(location)
    store.remove_file(path)


def remove_folder(location: str, first: str | None = None) -> None:
    """Delete a folder and all in it, the file `first` before the others; no error where there is none."""
    if first is not None:
        remove_file(join(location, first))
    if is_local(location):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(location)
        return
    store, path = remote(location)
    store.remove_folder(path)


def remove_empty_folders(folder: str) -> None:
    """Delete a local folder and those below it, as far as there is no file in them; an object store has none."""
    if is_local(folder):
        for path, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # not empty
                Path(path).rmdir()


def remove_leftovers(scratch: str) -> None:
    """Delete what killed processes left in the folder `scratch`; no living one may be writing there."""
    if not is_local(scratch):
        return
    for path in Path(scratch).glob(local.TEMPORARY + "*"):
        # What a killed driver's orphans leave may still take its name meanwhile.
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remote(location: str) -> tuple[arrow.Store, str]:
    """The bucket of an absolute URI, and the path in it."""
    scheme, _, rest = location.partition("://")
    bucket, _, path = rest.partition("/")
    return arrow.store(scheme, bucket), path


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """Errors that the user has to mend as `InputError`; that storage is away is left as it is."""
    try:
        yield
    except OSError as error:
        if isinstance(error, UnavailableError) and not isinstance(error, NoSuchPlaceError):
            raise
        raise InputError(f"{what}: {reason(error)}") from error


def reason(error: OSError) -> str:
    """Why storage refused, in one line, without the place."""
    return " ".join(str(error.strerror or error).split())
