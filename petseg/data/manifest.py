"""Which files there are: found, paired by name, checked, split. A manifest is a small Arrow table; no pixels here.

Columns, all strings: `id` (path below the folder, no ending, "/" between its parts; it names every output), `image`
(absolute path or URI) and `mask` (the same, null when predicting). Rows are sorted by `id`.
"""

import hashlib
import unicodedata
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from petseg import storage
from petseg.errors import InputError
from petseg.storage import checks

IMAGE_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Endings of the files that are taken for images. What a file really is, its content decides."""

OUTPUT_ENDINGS = (".jpg", ".png")
"""Endings of the files that a prediction names by an id."""

SCHEMA = pa.schema([("id", pa.string()), ("image", pa.string()), ("mask", pa.string())])

_CHUNK = 2**16


def discover(images: str, masks: str | None = None) -> pa.Table:
    """The manifest of a folder of photos, or of two folders, paired by id.

    Raises `InputError` where a folder is missing or holds no image, where two files have one id, where a photo has
    no mask or a mask no photo, and where a name cannot name an output safely.
    """
    if masks is None:
        photos = _images_by_id(images, "--images", apart_from=None)
        return photos.append_column("mask", pa.nulls(photos.num_rows, pa.string())).cast(SCHEMA)
    pairs, photos_alone, masks_alone = match(images, masks)
    _refuse_unpaired(photos_alone["id"].to_pylist(), "a photo without a mask", masks)
    _refuse_unpaired(masks_alone["id"].to_pylist(), "a mask without a photo", images)
    return pairs


def match(images: str, masks: str) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The manifest of what is in both folders, and the photos and the masks that are alone: `id` and `image`.

    Raises `InputError` as `discover` does, but for these.
    """
    if images == masks:
        raise InputError(f"--images and --masks are one folder, {images}; keep photos and masks in two")
    photos = _images_by_id(images, "--images", apart_from=masks)
    of_masks = _images_by_id(masks, "--masks", apart_from=images)
    has_mask, has_photo = pc.is_in(photos["id"], of_masks["id"]), pc.is_in(of_masks["id"], photos["id"])  # pyright: ignore[reportAttributeAccessIssue]
    pairs = photos.filter(has_mask).append_column("mask", of_masks.filter(has_photo)["image"]).cast(SCHEMA)
    return pairs, photos.filter(pc.invert(has_mask)), of_masks.filter(pc.invert(has_photo))  # pyright: ignore[reportAttributeAccessIssue]


def digest(manifest: pa.Table, columns: tuple[str, ...]) -> str:
    """SHA-256, in hexadecimal, of the values of some columns."""
    found = hashlib.sha256()
    for name in columns:
        for start in range(0, manifest.num_rows, _CHUNK):
            for value in manifest[name].slice(start, _CHUNK).to_pylist():
                found.update(value.encode() + b"\n")
    return found.hexdigest()


def sample(manifest: pa.Table, count: int) -> pa.Table:
    """At most `count` rows, spread evenly over the sorted names: neighbours in a folder are often alike."""
    total = manifest.num_rows
    if count >= total:
        return manifest
    return manifest.take([i * total // count for i in range(count)])


def read_pairs(pairs: pa.Table, at_most: int | None = None) -> Iterator[tuple[dict[str, str], bytes, bytes, str]]:
    """Each row with the contents of its photo and its mask, and, where one of them cannot be read, which and why.

    Raises `UnavailableError` where storage does not answer.
    """
    rows = pairs.to_pylist()
    contents = storage.read_each((row[of] for row in rows for of in ("image", "mask")), at_most)
    for row, photo, mask in zip(rows, contents, contents, strict=True):
        if isinstance(photo, OSError):
            yield row, b"", b"", f"{row['image']}: cannot be read: {photo.strerror or photo}"
        elif isinstance(mask, OSError):
            yield row, b"", b"", f"{row['mask']}: cannot be read: {mask.strerror or mask}"
        else:
            yield row, photo, mask, ""


def refuse_bad(failures: list[str], remedy: str) -> InputError:
    """What is said of pairs that cannot be used."""
    shown = "; ".join(failures[:5]) + ("; …" if len(failures) > 5 else "")
    return InputError(f"pairs that cannot be used ({len(failures)}): {shown}. {remedy}")


def _images_by_id(folder: str, flag: str, apart_from: str | None) -> pa.Table:
    """The columns `id` and `image` of every image below `folder`, sorted by id; what lies in the folder `apart_from`
    is passed over.

    Names go into Arrow as they are listed: two million of them as Python strings would take a gigabyte.
    """
    inner = f"{apart_from}/".removeprefix(f"{folder}/") if f"{apart_from}/".startswith(f"{folder}/") else None
    names, ids, others = _Strings(), _Strings(), 0
    nested = []
    for name in storage.list_files(folder):
        if inner and name.startswith(inner):
            continue
        stem, dot, ending = name.rpartition(".")
        if dot + ending.lower() not in IMAGE_ENDINGS or not stem or stem.endswith("/"):
            others += 1
            continue
        _refuse_unsafe(name, storage.join(folder, name))
        names.append(name)
        ids.append(stem)
        if any(f"{output}/" in stem for output in OUTPUT_ENDINGS):
            nested.append(stem)
    if not len(ids):
        found = f"{others} files of other kinds" if others else "nothing"
        endings = ", ".join(sorted(ending[1:] for ending in IMAGE_ENDINGS))
        raise InputError(f"{flag} {folder}: no image in it ({endings}), but {found}; is it the right folder?")
    checks.require_readable([storage.join(folder, some) for some in names.some()], f"{flag} {folder}")
    files = pa.table({"id": ids.array(), "image": names.array()}).sort_by([("id", "ascending"), ("image", "ascending")])
    _refuse_twice(files, folder, flag)
    _refuse_nested(files, folder, nested)
    parts = [files["image"].slice(start, _CHUNK) for start in range(0, files.num_rows, _CHUNK)]
    join: Any = pc.binary_join_element_wise  # pyright: ignore[reportAttributeAccessIssue]
    locations = [chunk for part in parts for chunk in join(folder, part, "/").chunks]
    return pa.table({"id": files["id"], "image": pa.chunked_array(locations)})


class _Strings:
    """A column of strings that grows, in a tenth of the memory of a list."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._last: list[str] = []

    def __len__(self) -> int:
        return sum(map(len, self._chunks)) + len(self._last)

    def append(self, value: str) -> None:
        self._last.append(value)
        if len(self._last) == _CHUNK:
            self._close()

    def some(self) -> list[str]:
        """A few values, one of each part of the whole."""
        return [chunk[0].as_py() for chunk in self._chunks[:2]] + self._last[:1] + self._last[-1:]

    def array(self) -> pa.ChunkedArray:
        self._close()
        return pa.chunked_array(self._chunks, pa.string())

    def _close(self) -> None:
        self._chunks.append(pa.array(self._last, pa.string()))
        self._last = []


def _refuse_twice(found: pa.Table, folder: str, flag: str) -> None:
    ids = found["id"].combine_chunks()
    is_as_before = pc.equal(ids[1:], ids[:-1])  # pyright: ignore[reportAttributeAccessIssue]
    twice = pc.index(is_as_before, True).as_py()
    if twice >= 0:
        others = pc.unique(ids[1:].filter(is_as_before)).to_pylist()[1:]  # pyright: ignore[reportAttributeAccessIssue]
        more = f"; the same of {', '.join(others[:4])}{', …' if len(others) > 4 else ''}" if others else ""
        one, other = found["image"][twice : twice + 2].to_pylist()
        raise InputError(
            f"{storage.join(folder, other)} and {storage.join(folder, one)}: two files with one id "
            f"({ids[twice]}{more}), whose outputs would have one name; rename or move one of them out of {flag}"
        )


def _refuse_nested(found: pa.Table, folder: str, ids: list[str]) -> None:
    """Neither may a.png be an output's file and, for a/…'s sake, a folder."""
    above = {}
    for row_id in ids:
        parts = row_id.split("/")
        for depth in range(1, len(parts)):
            path = "/".join(parts[:depth])
            for ending in OUTPUT_ENDINGS:
                if path.endswith(ending):
                    above[path.removesuffix(ending)] = row_id
    for row_id in found["id"].to_pylist() if above else ():
        if row_id in above:
            inside = storage.join(folder, above[row_id])
            raise InputError(f"{inside}: its folder has the name that an output of {row_id} gets; rename one")


def _refuse_unpaired(ids: list[str], what: str, where: str) -> None:
    if ids:
        shown = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
        raise InputError(f"{what}: {shown} ({len(ids)} in all); add what is missing in {where}, or move these away")


def _refuse_unsafe(name: str, location: str) -> None:
    """An id becomes a file name below the output folder, so it must stay in it on any system (CWE-22)."""
    # Control characters, lone surrogates (bytes that are no UTF-8), line and paragraph separators.
    unfit = not location.isprintable() and any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in location
    )
    if unfit or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(f"{location!r}: this name cannot be kept for an output file; rename it")
