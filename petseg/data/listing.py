"""List the images of a folder, or those that a table names. No pixels here."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from petseg import storage
from petseg.data import heic
from petseg.data.ids import (
    OUTPUT_EXTENSIONS,
    is_utf8,
    require_no_nested_outputs,
    require_safe_folder,
    require_unique_ids,
    safe_id,
)
from petseg.data.photo_table import is_table, read_table
from petseg.errors import InputError
from petseg.files import CHANGES, CLASSES, PHOTOS
from petseg.storage import checks

IMAGE_EXTENSIONS = {
    *(".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".mpo"),
    *(".png", ".tif", ".tiff", ".webp"),
    *heic.EXTENSIONS,
}
"""Extensions of files that count as images; those of HEIC only if pi-heif is installed. The format is detected from the
content, not from the extension.
"""

CHUNK = 2**16
"""Number of names that are held as Python strings at a time."""

UNKNOWN_VERSION = 0

Skipped = dict[str, dict[str, int]]
"""Numbers of files that a listing skipped, by flag ("--images", "--masks") and reason (".txt", "hidden", …)."""


def list_images(
    location: str, flag: str, *, excluded: str | None = None, skipped: Skipped | None = None, versions: bool = False
) -> pa.Table:
    """Return `id` and `image` of every image below a folder, sorted by id, except those in the folder `excluded`.

    With `versions` there is also the column `version`: an int64 that changes when the file does. It is
    `UNKNOWN_VERSION` for a file in an object store that a table names, because it would need a request.

    An id is in Unicode's form NFC, because some systems store "é" as "e" and an accent (NFD). Characters that are not
    safe in the name of an output are escaped; see `ids.safe_id`. `location` may also be a single image; or a table
    (`photo_table`), whose order is kept. Skipped files are added to `skipped`. Without it, a line about them is
    printed.

    Raises `InputError`, naming `flag`, if there is no image, or two have the same id.
    """
    require_safe_folder(location, flag)
    if skipped is not None:
        skipped[flag] = {}
    if is_table(location):
        files = read_table(location, flag)
        checks.require_readable(files["image"].slice(0, 3).to_pylist(), f"{flag} {location}")
    elif _is_single_image(location):
        name = location.rpartition("/")[2]
        files = pa.table({"id": [safe_id(name.rpartition(".")[0])], "image": [location]})
    else:
        return _list_folder(location, flag, excluded, skipped, versions)
    if not versions:
        return files
    found = [_version_number(storage.version(image)) for image in files["image"].to_pylist()]
    return files.append_column("version", pa.array(found, pa.int64()))


def skipped_lines(skipped: Skipped) -> list[str]:
    """Return a line for each flag whose folder has skipped files, such as "--images: skipped 3 .txt, 1 hidden"."""
    return [f"{flag}: skipped {_count_reasons(counts)}" for flag, counts in skipped.items() if counts]


def _list_folder(folder: str, flag: str, excluded: str | None, skipped: Skipped | None, versions: bool) -> pa.Table:
    others: Counter[str] = Counter()
    files = _table_of_names(folder, flag, excluded, others, versions)
    if not files.num_rows:
        accepted, found = ", ".join(sorted(_extensions())), _count_reasons(others) or "0"
        raise InputError(f"{flag} {folder}: no images found ({accepted}), other files: {found}; check the path")
    if skipped is not None:
        skipped[flag] = dict(others)
    elif others:
        print(f"note: {flag} {folder}: skipped {_count_reasons(others)}")
    rows = sorted({0, files.num_rows // 2, files.num_rows - 1})
    names = files["image"].take(rows).to_pylist()
    checks.require_readable([storage.join(folder, name) for name in names], f"{flag} {folder}")
    files = files.sort_by([("id", "ascending"), ("image", "ascending")])
    require_unique_ids(files, folder, flag)
    require_no_nested_outputs(files, folder, _nested(files["id"]))
    parts = [files["image"].slice(start, CHUNK) for start in range(0, files.num_rows, CHUNK)]
    join: Any = pc.binary_join_element_wise  # pyright: ignore[reportAttributeAccessIssue]
    locations = [chunk for part in parts for chunk in join(folder, part, "/").chunks]
    return files.set_column(1, "image", pa.chunked_array(locations))


def _table_of_names(folder: str, flag: str, excluded: str | None, others: Counter[str], versions: bool) -> pa.Table:
    """Return `id`, `image` (the path below `folder`) and perhaps `version`, unsorted. Count other files in `others`.

    Names are put into Arrow as they are listed: two million of them as Python strings would take a gigabyte.
    """
    inner = f"{excluded}/".removeprefix(f"{folder}/") if f"{excluded}/".startswith(f"{folder}/") else None
    extensions = _extensions()
    names, ids, numbers = _Column(pa.string()), _Column(pa.string()), _Column(pa.int64())
    for name, version in _list(folder, others, versions):
        if inner and name.startswith(inner):
            continue
        stem, dot, ending = name.rpartition(".")
        if dot + ending.lower() not in extensions or not stem or stem.endswith("/"):
            if flag != "--masks" or name not in (CLASSES, PHOTOS, CHANGES):
                others[_skip_reason(dot + ending.lower()) if stem and "/" not in ending else "without extension"] += 1
        elif not is_utf8(name):
            others["with a name that is not UTF-8"] += 1
        else:
            names.append(name)
            ids.append(safe_id(stem))
            if versions:
                numbers.append(_version_number(version))
    columns = {"id": ids.array(), "image": names.array()}
    return pa.table(columns | ({"version": numbers.array()} if versions else {}))


def _list(folder: str, others: Counter[str], versions: bool) -> Iterator[tuple[str, str]]:
    if versions:
        return storage.list_versions(folder, others)
    return ((name, "") for name in storage.list_files(folder, others))


def _version_number(version: str) -> int:
    """Return a hash of a version, which takes a quarter of the memory of the text; `UNKNOWN_VERSION` for ""."""
    if not version:
        return UNKNOWN_VERSION
    return int.from_bytes(hashlib.blake2b(version.encode(), digest_size=8).digest(), "little", signed=True)


def _nested(ids: pa.ChunkedArray) -> list[str]:
    """Return the ids that lie in a folder with the name of a file of an output, such as "a.png/b"."""
    is_nested: Any = pc.match_substring_regex  # pyright: ignore[reportAttributeAccessIssue]
    pattern = "|".join(f"\\{ending}/" for ending in OUTPUT_EXTENSIONS)
    return ids.filter(is_nested(ids, pattern)).to_pylist()


def _extensions() -> set[str]:
    return IMAGE_EXTENSIONS if heic.is_installed() else IMAGE_EXTENSIONS - heic.EXTENSIONS


def _count_reasons(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in most[:8]) + (", …" if len(most) > 8 else "")


def _skip_reason(extension: str) -> str:
    return f"{extension} without pi-heif ({heic.REMEDY})" if extension in heic.EXTENSIONS else extension


class _Column:
    """A column that can be appended to. It takes a tenth of a list's memory."""

    def __init__(self, arrow_type: pa.DataType) -> None:
        self._type = arrow_type
        self._chunks: list[pa.Array] = []
        self._last: list[Any] = []

    def append(self, value: str | int) -> None:
        self._last.append(value)
        if len(self._last) == CHUNK:
            self._close()

    def array(self) -> pa.ChunkedArray:
        self._close()
        return pa.chunked_array(self._chunks, self._type)

    def _close(self) -> None:
        self._chunks.append(pa.array(self._last, self._type))
        self._last = []


def _is_single_image(location: str) -> bool:
    ending = "." + location.rpartition("/")[2].rpartition(".")[2].lower()
    return ending in IMAGE_EXTENSIONS and storage.is_file(location)
