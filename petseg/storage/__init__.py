"""Files by path or URI: the only package that knows whether a file is local or in an object store.

A location is a string: a local path, or a URI such as s3://bucket/key, gs://, file://. The functions list, read and
write whole files. `local` does this on a local disk, and `arrow` and `s3` in object stores.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from petseg.errors import InputError, NoSuchPlaceError
from petseg.lookahead import map_ahead
from petseg.storage import arrow, local

_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")

_AHEAD = 16
"""Number of files requested from an object store in parallel. At 30 ms each that is about 500 files a second."""


def is_local(location: str) -> bool:
    """Return True if an absolute location is a local path and not a URI."""
    return not _URI.match(location)


def absolute(location: str) -> str:
    """Return `location` as an absolute path or URI, without a trailing slash.

    Ray's workers have other working directories, so the driver makes every location absolute. Raises `InputError` if a
    URI has no bucket or a part `.` or `..`, or if it contains credentials or a query, which would end up in logs.
    """
    if _URI.match(location):
        parts = urllib.parse.urlsplit(location)
        if parts.scheme == "file":
            return os.path.abspath(urllib.parse.unquote(parts.path))  # noqa: PTH100
        if "@" in parts.netloc or not parts.netloc or parts.query:
            # The message omits the rest of the URI, because it may hold a secret.
            raise InputError(
                f"{parts.scheme}://…: scheme://bucket/prefix is expected, without credentials or options; they come "
                "from the environment (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, …)"
            )
        if {".", ".."} & set(parts.path.split("/")):
            raise InputError(f"{location}: a key with . or .. for a part; give the place itself")
        return parts.scheme + location[len(parts.scheme) :].rstrip("/")
    return os.path.abspath(os.path.expanduser(location))  # noqa: PTH100, PTH111 - Path.absolute keeps ".."


def join(location: str, *parts: str) -> str:
    """Return the location of a file below a folder."""
    return "/".join([location.rstrip("/"), *parts])


def list_files(folder: str, skipped: Counter[str] | None = None) -> Iterator[str]:
    """Yield the path, relative to `folder`, of every file in it at any depth, in no particular order.

    Hidden files and folders (with a leading dot) are skipped, because operating systems and editors leave them
    everywhere. Links to folders are followed, except a link to a folder that contains it, which would never end. Pipes
    and devices are skipped. `skipped` counts what was skipped, by reason.

    Raises `InputError` if the folder does not exist or cannot be read.
    """
    for below, _ in _list(folder, skipped):
        yield below


def list_versions(folder: str, skipped: Counter[str] | None = None) -> Iterator[tuple[str, str]]:
    """Do as `list_files`, but yield (path, version) of every file.

    A file whose content changes gets another version. It consists of the size and the modification time of the file,
    or is the ETag of an object. It is "" for a link to nothing.
    """
    for below, found in _list(folder, skipped):
        yield below, found if isinstance(found, str) else local.version(found)


def version(location: str) -> str:
    """Return the version of a local file; "" if it is missing, or in an object store, where it would need a request."""
    return local.version(Path(location)) if is_local(location) else ""


def _list(folder: str, skipped: Counter[str] | None) -> Iterator[tuple[str, "os.DirEntry[str] | str"]]:
    """Yield (path, entry of a local folder or version of an object) of every file."""
    skipped = Counter() if skipped is None else skipped
    if is_local(folder):
        yield from local.list_files(folder, skipped)
        return
    store, path = remote(folder)
    with as_input_error(f"{folder}: cannot be listed"):
        for below, etag in store.list_files(path):
            if any(part.startswith(".") for part in below.split("/")):
                skipped["hidden"] += 1
            else:
                yield below, etag


def is_file(location: str) -> bool:
    """Return True if a file exists at a location. Raises `UnavailableError` if storage does not answer."""
    if is_local(location):
        return os.path.isfile(location)  # noqa: PTH113
    store, path = remote(location)
    return store.exists(path)


def list_names(folder: str) -> list[str]:
    """Return the sorted names of the files and folders directly in `folder`.

    The list is empty if `folder` does not exist or is a file. Raises `InputError` if it cannot be listed.
    """
    with as_input_error(f"{folder}: cannot be listed"):
        if not is_local(folder):
            store, path = remote(folder)
            return sorted(store.list_names(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(folder))  # noqa: PTH208
        return []


def read(location: str, at_most: int | None = None) -> bytes:
    """Return the whole content of a file.

    Raises `OSError` if it cannot be read, which is `FileNotFoundError` if it does not exist. A file of more than
    `at_most` bytes also raises `OSError`, before any byte is read.
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
    """Yield the content of each file in order, or the `OSError` of a file that cannot be read.

    Files are requested ahead and in parallel, because storage takes long to answer but answers many requests at once.
    Raises `UnavailableError` if storage does not answer.
    """

    def read_or_error(location: str) -> bytes | OSError:
        try:
            return read(location, at_most)
        except OSError as error:
            return error

    with ThreadPoolExecutor(_AHEAD) as pool:
        yield from map_ahead(pool, read_or_error, locations, _AHEAD)


def read_input(location: str, name: str = "", at_most: int | None = None) -> bytes:
    """Do as `read`, but raise `InputError` if the file cannot be read. The message calls it `name`, or its location."""
    with as_input_error(f"{name or location}: cannot be read"):
        return read(location, at_most)


def read_json(location: str) -> Any:
    """Return the parsed content of a JSON file.

    Raises `InputError` if the file is not JSON or cannot be read, and `UnavailableError` if storage does not answer.
    """
    content = read_input(location)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and brackets in brackets without end
        raise InputError(f"{location}: not JSON ({error}); was it edited, or cut short?") from error


def open_file(location: str) -> pa.NativeFile:
    """Open a file for random access, such as to a Parquet footer. Raises `OSError` as `read` does."""
    if is_local(location):
        return pa.OSFile(location)
    store, path = remote(location)
    return store.open_file(path)


def write(location: str, content: bytes, scratch: str | None = None) -> None:
    """Write a whole file atomically, and create its parent folders. Readers see the complete file or no file.

    A local file is first written to a hidden file in the folder `scratch` (default: the file's own folder; it must be
    on the same disk), flushed to the disk, and then renamed. What a killed process leaves in `scratch` is cleaned up by
    `remove_leftovers(scratch)`. An object store shows an object only once it is complete.
    """
    if is_local(location):
        local.write(location, content, scratch)
    else:
        store, path = remote(location)
        store.write(path, content)


def create(location: str, content: bytes, flag: str) -> None:
    """Write a file that must not exist yet. If two processes try, one of them gets an error.

    In an object store without conditional writes, two processes can both pass the check at the same moment. Raises
    `InputError`, naming `flag`, if the file exists or cannot be written.
    """
    with as_input_error(f"{flag}: {location} cannot be written"):
        try:
            if is_local(location):
                local.create(location, content)
            else:
                store, path = remote(location)
                store.create(path, content)
        except FileExistsError as error:
            raise InputError(f"{flag}: {location} already exists; was another job started just now?") from error


def write_folder(location: str, files: dict[str, bytes]) -> None:
    """Write a new folder of files atomically.

    A local folder is renamed into place. In an object store the files are written in order: the folder is complete
    only if the last file of `files` exists.
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
    """Flush the entries of local folders, so that new names survive a power cut: `write` flushes only contents."""
    for folder in filter(is_local, folders):
        local.flush_folder(folder)


def remove_file(location: str) -> None:
    """Delete a file. Do nothing if it does not exist."""
    if is_local(location):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            Path(location).unlink()
        return
    store, path = remote(location)
    store.remove_file(path)


def remove_folder(location: str, first: str | None = None) -> None:
    """Delete a folder with its content, the file `first` before the others. Do nothing if it does not exist."""
    if first is not None:
        remove_file(join(location, first))
    if is_local(location):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(location)
        return
    store, path = remote(location)
    store.remove_folder(path)


def remove_empty_folders(folder: str) -> None:
    """Delete the empty folders at and below a local folder. Do nothing in object stores, which have no folders."""
    if is_local(folder):
        local.remove_empty_folders(folder)


def remove_leftovers(scratch: str) -> None:
    """Delete the temporary files of killed processes in `scratch`. No running process may be writing there."""
    if is_local(scratch):
        local.remove_leftovers(scratch)


def remote(location: str) -> tuple[arrow.Store, str]:
    """Return the store for the bucket of an absolute URI, and the path in that bucket."""
    scheme, _, rest = location.partition("://")
    bucket, _, path = rest.partition("/")
    return arrow.store(scheme, bucket), path


@contextlib.contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Turn the `OSError` of a file, and a `NoSuchPlaceError`, into an `InputError` that begins with `what`.

    Another `UnavailableError` passes unchanged, because the user cannot fix it in the input.
    """
    try:
        yield
    except (OSError, NoSuchPlaceError) as error:
        raise InputError(f"{what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the reason of an error in one line, without its location."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())
