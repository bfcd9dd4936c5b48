"""Find photos and masks, pair them by name, and check the names. A manifest is a small Arrow table; no pixels here.

Its columns are strings: `id` (path below the folder without extension, "/" between its parts; it names every output),
`image` (absolute path or URI) and `mask` (the same; null when predicting). Rows are sorted by `id`, or as in the table
that --images names.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
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
from petseg.data.suffixes import find_suffixes, keys_of
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

SCHEMA = pa.schema([("id", pa.string()), ("image", pa.string()), ("mask", pa.string())])

_CHUNK = 2**16
_SUFFIX_FLAGS = ("--image-suffix", "--mask-suffix")
_FOLDER_FLAGS = {"--image-suffix": "--images", "--mask-suffix": "--masks"}

Skipped = dict[str, dict[str, int]]
"""Numbers of files that a listing skipped, by flag ("--images", "--masks") and reason (".txt", "hidden", …)."""


def discover(
    images: str, masks: str | None = None, *, suffixes: tuple[str, str] = ("", ""), skipped: Skipped | None = None
) -> pa.Table:
    """Return the manifest of a folder (or table) of photos, or of two, whose files are paired by id.

    `suffixes` are --image-suffix and --mask-suffix: what the names of photos and masks end with, beside the common
    part. Without them, suffixes that all names have are found. Skipped files are added to `skipped`. Without it, a line
    about them is printed.

    Raises `InputError` if a folder is missing or holds no image, if two files have one id, if a photo has no mask or a
    mask no photo, or if a name cannot safely name an output.
    """
    if masks is None:
        photos = _images_by_id(images, "--images", None, skipped)
        return photos.append_column("mask", pa.nulls(photos.num_rows, pa.string())).cast(SCHEMA)
    pairs, unpaired_photos, unpaired_masks = match(images, masks, suffixes=suffixes, skipped=skipped)
    _require_no_unpaired(unpaired_photos["id"].to_pylist(), "photo", "without a mask", masks)
    _require_no_unpaired(unpaired_masks["id"].to_pylist(), "mask", "without a photo", images)
    return pairs


def match(
    images: str, masks: str, *, suffixes: tuple[str, str] = ("", ""), skipped: Skipped | None = None
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return (manifest of the pairs, photos without a mask, masks without a photo).

    The last two have the columns `id` and `image`. `suffixes` and `skipped` are those of `discover`. Raises
    `InputError` as `discover` does, except for files without a partner.
    """
    if images == masks and not is_table(images):
        raise InputError(f"--images and --masks are the same folder, {images}; give a separate folder for each")
    photos = _images_by_id(images, "--images", masks, skipped)
    mask_files = _images_by_id(masks, "--masks", images, skipped)
    any_equal = pc.any(pc.is_in(photos["id"], mask_files["id"])).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    if suffixes == ("", "") and not any_equal:
        suffixes = find_suffixes(photos["id"].to_pylist(), mask_files["id"].to_pylist())
        given = " ".join(f"{flag} {text}" for flag, text in zip(_SUFFIX_FLAGS, suffixes, strict=True) if text)
        if given:
            print(f"note: the names of photos and masks end differently; they are paired as by {given}")
    photos = _add_keys(photos, suffixes[0], "--image-suffix", skipped)
    mask_files = _add_keys(mask_files, suffixes[1], "--mask-suffix", skipped)
    mask_of = pc.index_in(photos["key"], value_set=mask_files["key"])  # pyright: ignore[reportAttributeAccessIssue]
    pairs = photos.filter(mask_of.is_valid()).select(["id", "image"])
    pairs = pairs.append_column("mask", mask_files["image"].take(mask_of.drop_null())).cast(SCHEMA)
    has_photo = pc.is_in(mask_files["key"], photos["key"])  # pyright: ignore[reportAttributeAccessIssue]
    unpaired_photos, unpaired_masks = photos.filter(mask_of.is_null()), mask_files.filter(pc.invert(has_photo))  # pyright: ignore[reportAttributeAccessIssue]
    return pairs, unpaired_photos.select(["id", "image"]), unpaired_masks.select(["id", "image"])


def _add_keys(files: pa.Table, suffix: str, flag: str, skipped: Skipped | None) -> pa.Table:
    """Add the column `key`, the id without `suffix`, and leave out files without it."""
    keys = keys_of(files["id"], suffix)
    kept = files.append_column("key", keys).filter(keys.is_valid())
    if not kept.num_rows:
        raise InputError(f"{flag} {suffix}: no name has it, such as {files['image'][0]}; leave it out")
    if keys.null_count:
        reason = f"without {flag} {suffix}"
        if skipped is None:
            print(f"note: skipped {keys.null_count} {reason}")
        else:
            skipped[_FOLDER_FLAGS[flag]][reason] = keys.null_count
    return kept


def digest(manifest: pa.Table, columns: tuple[str, ...]) -> str:
    """Return the SHA-256, in hexadecimal, of the values in these columns."""
    sha256 = hashlib.sha256()
    for name in columns:
        for start in range(0, manifest.num_rows, _CHUNK):
            for value in manifest[name].slice(start, _CHUNK).to_pylist():
                sha256.update(value.encode() + b"\n")
    return sha256.hexdigest()


def sample(manifest: pa.Table, count: int) -> pa.Table:
    """Return at most `count` rows, spread evenly over the sorted names, because neighbours are often alike."""
    total = manifest.num_rows
    if count >= total:
        return manifest
    return manifest.take([i * total // count for i in range(count)])


def with_masks(ids: pa.ChunkedArray, masks: str, flag: str) -> np.ndarray:
    """Return which of these photos have a mask in a folder, or in a table of masks: bool (N,).

    If no name is equal, names that differ by a suffix of all masks are. Raises `InputError`, naming `flag`, as
    `discover` does.
    """
    mask_ids = _images_by_id(masks, flag, None, {})["id"]
    found = pc.is_in(ids, mask_ids)  # pyright: ignore[reportAttributeAccessIssue]
    if not pc.any(found).as_py():  # pyright: ignore[reportAttributeAccessIssue]
        of_photos, of_masks = find_suffixes(ids.to_pylist(), mask_ids.to_pylist())
        found = pc.is_in(keys_of(ids, of_photos), keys_of(mask_ids, of_masks).drop_null())  # pyright: ignore[reportAttributeAccessIssue]
    return found.to_numpy()


def read_pairs(pairs: pa.Table, at_most: int | None = None) -> Iterator[tuple[dict[str, str], bytes, bytes, str]]:
    """Yield (row, content of the photo, content of the mask, error) for each row.

    If a file cannot be read, `error` names it and the reason, and both contents are empty. Otherwise `error` is "".
    `at_most` is the size limit of a file in bytes. Raises `UnavailableError` if storage does not answer.
    """
    rows = pairs.to_pylist()
    contents = storage.read_each((row[of] for row in rows for of in ("image", "mask")), at_most)
    for row, photo, mask in zip(rows, contents, contents, strict=True):
        if isinstance(photo, OSError):
            yield row, b"", b"", f"{row['image']}: cannot be read: {storage.reason(photo)}"
        elif isinstance(mask, OSError):
            yield row, b"", b"", f"{row['mask']}: cannot be read: {storage.reason(mask)}"
        else:
            yield row, photo, mask, ""


def unusable_pairs_error(failures: list[str], remedy: str) -> InputError:
    """Return the error that lists the first of the pairs that cannot be used, and the remedy."""
    shown = "; ".join(failures[:5]) + ("; …" if len(failures) > 5 else "")
    pairs = "1 pair" if len(failures) == 1 else f"{len(failures)} pairs"
    return InputError(f"{pairs} cannot be used: {shown}; {remedy}")


def skipped_lines(skipped: Skipped) -> list[str]:
    """Return a line for each flag whose folder has skipped files, such as "--images: skipped 3 .txt, 1 hidden"."""
    return [f"{flag}: skipped {_count_reasons(counts)}" for flag, counts in skipped.items() if counts]


def _count_reasons(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in most[:8]) + (", …" if len(most) > 8 else "")


def _images_by_id(folder: str, flag: str, excluded: str | None, skipped: Skipped | None) -> pa.Table:
    """Return `id` and `image` of every image below `folder`, sorted by id, except those in the folder `excluded`.

    An id is in Unicode's form NFC, because some systems store "é" as "e" and an accent (NFD). Characters that are not
    safe in the name of an output are escaped; see `ids.safe_id`. `folder` may also be a single image; or a table
    (`photo_table`), whose order is kept.

    Names are put into Arrow as they are listed: two million of them as Python strings would take a gigabyte.
    """
    require_safe_folder(folder, flag)
    if is_table(folder):
        if skipped is not None:
            skipped[flag] = {}
        files = read_table(folder, flag)
        checks.require_readable(files["image"].slice(0, 3).to_pylist(), f"{flag} {folder}")
        return files
    if _is_single_image(folder):
        if skipped is not None:
            skipped[flag] = {}
        folder, _, name = folder.rpartition("/")
        return pa.table({"id": [safe_id(name.rpartition(".")[0])], "image": [storage.join(folder, name)]})
    inner = f"{excluded}/".removeprefix(f"{folder}/") if f"{excluded}/".startswith(f"{folder}/") else None
    names, ids, others = _StringColumn(), _StringColumn(), Counter()
    nested = []
    extensions = IMAGE_EXTENSIONS if heic.is_installed() else IMAGE_EXTENSIONS - heic.EXTENSIONS
    for name in storage.list_files(folder, others):
        if inner and name.startswith(inner):
            continue
        stem, dot, ending = name.rpartition(".")
        if dot + ending.lower() not in extensions or not stem or stem.endswith("/"):
            if flag != "--masks" or name not in (CLASSES, PHOTOS, CHANGES):
                others[_skip_reason(dot + ending.lower()) if stem and "/" not in ending else "without extension"] += 1
            continue
        if not is_utf8(name):
            others["with a name that is not UTF-8"] += 1
            continue
        names.append(name)
        stem = safe_id(stem)
        ids.append(stem)
        if any(f"{output}/" in stem for output in OUTPUT_EXTENSIONS):
            nested.append(stem)
    if not len(ids):
        accepted, found = ", ".join(sorted(extensions)), _count_reasons(others) or "0"
        raise InputError(f"{flag} {folder}: no images found ({accepted}), other files: {found}; check the path")
    if skipped is not None:
        skipped[flag] = dict(others)
    elif others:
        print(f"note: {flag} {folder}: skipped {_count_reasons(others)}")
    checks.require_readable([storage.join(folder, name) for name in names.sample()], f"{flag} {folder}")
    files = pa.table({"id": ids.array(), "image": names.array()}).sort_by([("id", "ascending"), ("image", "ascending")])
    require_unique_ids(files, folder, flag)
    require_no_nested_outputs(files, folder, nested)
    parts = [files["image"].slice(start, _CHUNK) for start in range(0, files.num_rows, _CHUNK)]
    join: Any = pc.binary_join_element_wise  # pyright: ignore[reportAttributeAccessIssue]
    locations = [chunk for part in parts for chunk in join(folder, part, "/").chunks]
    return pa.table({"id": files["id"], "image": pa.chunked_array(locations)})


def _skip_reason(extension: str) -> str:
    return f"{extension} without pi-heif ({heic.REMEDY})" if extension in heic.EXTENSIONS else extension


class _StringColumn:
    """A column of strings that can be appended to. It takes a tenth of a list's memory."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._last: list[str] = []

    def __len__(self) -> int:
        return sum(map(len, self._chunks)) + len(self._last)

    def append(self, value: str) -> None:
        self._last.append(value)
        if len(self._last) == _CHUNK:
            self._close()

    def sample(self) -> list[str]:
        """Return up to four values: the first of each of the first two chunks, and the first and the last of the
        unfinished chunk.
        """
        return [chunk[0].as_py() for chunk in self._chunks[:2]] + self._last[:1] + self._last[-1:]

    def array(self) -> pa.ChunkedArray:
        self._close()
        return pa.chunked_array(self._chunks, pa.string())

    def _close(self) -> None:
        self._chunks.append(pa.array(self._last, pa.string()))
        self._last = []


def _require_no_unpaired(ids: list[str], kind: str, lack: str, where: str) -> None:
    if ids:
        shown = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
        raise InputError(
            f"{len(ids)} {kind}{'s' * (len(ids) > 1)} {lack}: {shown}; add the missing files to {where}, or move these "
            "files away"
        )


def _is_single_image(location: str) -> bool:
    ending = "." + location.rpartition("/")[2].rpartition(".")[2].lower()
    return ending in IMAGE_EXTENSIONS and storage.is_file(location)
