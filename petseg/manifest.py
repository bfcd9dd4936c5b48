"""Which files there are: found, paired by name, checked, split. A manifest is a small Arrow table; no pixels here.

Columns, all strings: `id` (path below the folder, no ending, "/" between its parts; it names every output), `image`
(absolute path or URI) and `mask` (the same, null when predicting). Rows are sorted by `id`.
"""

import random
import unicodedata
from pathlib import PurePosixPath

import pyarrow as pa

from petseg import storage
from petseg.config import InputError

IMAGE_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Endings of the files that are taken for images. What a file really is, its content decides."""

SCHEMA = pa.schema([("id", pa.string()), ("image", pa.string()), ("mask", pa.string())])


def discover(images: str, masks: str | None = None) -> pa.Table:
    """The manifest of a folder of photos, or of two folders, paired by id.

    Raises `InputError` where a folder is missing or holds no image, where two files have one id, where a photo has
    no mask or a mask no photo, and where a name cannot name an output safely.
    """
    if images == masks:
        raise InputError(f"--images and --masks are one folder, {images}; keep photos and masks in two")
    image_files = _files_by_id(images, "--images", apart_from=masks)
    if masks is None:
        ids = sorted(image_files)
        return pa.table([ids, [image_files[i] for i in ids], [None] * len(ids)], schema=SCHEMA)
    mask_files = _files_by_id(masks, "--masks", apart_from=images)
    _refuse_unpaired(sorted(image_files.keys() - mask_files.keys()), "a photo without a mask", masks)
    _refuse_unpaired(sorted(mask_files.keys() - image_files.keys()), "a mask without a photo", images)
    ids = sorted(image_files)
    return pa.table([ids, [image_files[i] for i in ids], [mask_files[i] for i in ids]], schema=SCHEMA)


def split(manifest: pa.Table, *, seed: int, val_count: int) -> tuple[pa.Table, pa.Table]:
    """Shuffle the rows and hold the last `val_count` out: (training, validation).

    The shuffle is that of the Keras example: `random.Random(seed).shuffle` on the sorted list.
    """
    order = list(range(manifest.num_rows))
    random.Random(seed).shuffle(order)
    first_val = manifest.num_rows - val_count
    return manifest.take(order[:first_val]), manifest.take(order[first_val:])


def _files_by_id(folder: str, flag: str, apart_from: str | None) -> dict[str, str]:
    """The location of every image below `folder`, by id; what lies in the folder `apart_from` is passed over."""
    inner = f"{apart_from}/".removeprefix(f"{folder}/") if f"{apart_from}/".startswith(f"{folder}/") else None
    files: dict[str, str] = {}
    others = 0
    for name in sorted(storage.list_files(folder)):
        if inner and name.startswith(inner):
            continue
        path = PurePosixPath(name)
        if path.suffix.lower() not in IMAGE_ENDINGS:
            others += 1
            continue
        location = storage.join(folder, name)
        _refuse_unsafe(name, location)
        row_id = name.removesuffix(path.suffix)
        if row_id in files:
            raise InputError(
                f"{location} and {files[row_id]}: two files with one id ({row_id}), whose outputs would have one "
                f"name; rename or move one of them out of {flag}"
            )
        files[row_id] = location
    _refuse_nested(files)
    if not files:
        found = f"{others} files of other kinds" if others else "nothing"
        endings = ", ".join(sorted(ending[1:] for ending in IMAGE_ENDINGS))
        raise InputError(f"{flag} {folder}: no image in it ({endings}), but {found}; is it the right folder?")
    return files


def _refuse_nested(files: dict[str, str]) -> None:
    """Neither may a.png be a mask's file and, for a/…'s sake, a folder."""
    for row_id, location in files.items():
        if ".png/" not in row_id:
            continue
        parts = row_id.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if above.endswith(".png") and above.removesuffix(".png") in files:
                other = files[above.removesuffix(".png")]
                raise InputError(f"{location}: its folder has the name that the mask of {other} gets; rename one")


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
