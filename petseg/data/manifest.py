"""Find photos and masks, and pair them by name. A manifest is a small Arrow table; no pixels here.

Its columns are strings: `id` (path below the folder without extension, "/" between its parts; it names every output),
`image` (absolute path or URI) and `mask` (the same). Rows are sorted by `id`, or as in the table that --images names.
When predicting, there is `version` instead of `mask`: an int64 that changes when the photo's file does.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from petseg import storage
from petseg.data.listing import CHUNK, Skipped, list_images
from petseg.data.photo_table import is_table
from petseg.data.suffixes import find_suffixes, keys_of
from petseg.errors import InputError

SCHEMA = pa.schema([("id", pa.string()), ("image", pa.string()), ("mask", pa.string())])

_SUFFIX_FLAGS = ("--image-suffix", "--mask-suffix")
_FOLDER_FLAGS = {"--image-suffix": "--images", "--mask-suffix": "--masks"}


def discover(
    images: str,
    masks: str | None = None,
    *,
    suffixes: tuple[str, str] = ("", ""),
    skipped: Skipped | None = None,
    versions: bool = False,
) -> pa.Table:
    """Return the manifest of a folder (or table) of photos, or of two, whose files are paired by id.

    `suffixes` are --image-suffix and --mask-suffix: what the names of photos and masks end with, beside the common
    part. Without them, suffixes that all names have are found. Skipped files are added to `skipped`. Without it, a line
    about them is printed. With `versions`, pairs have the columns `image_version` and `mask_version`, too.

    Raises `InputError` if a folder is missing or holds no image, if two files have one id, if a photo has no mask or a
    mask no photo, or if a name cannot safely name an output.
    """
    if masks is None:
        return list_images(images, "--images", skipped=skipped, versions=True)
    pairs, unpaired_photos, unpaired_masks = match(images, masks, suffixes=suffixes, skipped=skipped, versions=versions)
    _require_no_unpaired(unpaired_photos["id"].to_pylist(), "photo", "without a mask", masks)
    _require_no_unpaired(unpaired_masks["id"].to_pylist(), "mask", "without a photo", images)
    return pairs


def match(
    images: str,
    masks: str,
    *,
    suffixes: tuple[str, str] = ("", ""),
    skipped: Skipped | None = None,
    versions: bool = False,
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return (manifest of the pairs, photos without a mask, masks without a photo).

    The last two have the columns `id` and `image`. `suffixes`, `skipped` and `versions` are those of `discover`. Raises
    `InputError` as `discover` does, except for files without a partner.
    """
    if images == masks and not is_table(images):
        raise InputError(f"--images and --masks are the same folder, {images}; give a separate folder for each")
    photos = list_images(images, "--images", excluded=masks, skipped=skipped, versions=versions)
    mask_files = list_images(masks, "--masks", excluded=images, skipped=skipped, versions=versions)
    any_equal = pc.any(pc.is_in(photos["id"], mask_files["id"])).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    if suffixes == ("", "") and not any_equal:
        suffixes = find_suffixes(photos["id"].to_pylist(), mask_files["id"].to_pylist())
        given = " ".join(f"{flag} {text}" for flag, text in zip(_SUFFIX_FLAGS, suffixes, strict=True) if text)
        if given:
            print(f"note: the names of photos and masks end differently; they are paired as by {given}")
    photos = _add_keys(photos, suffixes[0], "--image-suffix", skipped)
    mask_files = _add_keys(mask_files, suffixes[1], "--mask-suffix", skipped)
    mask_of = pc.index_in(photos["key"], value_set=mask_files["key"])  # pyright: ignore[reportAttributeAccessIssue]
    paired, masks_of_pairs = photos.filter(mask_of.is_valid()), mask_files.take(mask_of.drop_null())
    pairs = paired.select(["id", "image"]).append_column("mask", masks_of_pairs["image"]).cast(SCHEMA)
    if versions:
        pairs = pairs.append_column("image_version", paired["version"])
        pairs = pairs.append_column("mask_version", masks_of_pairs["version"])
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
        for start in range(0, manifest.num_rows, CHUNK):
            for value in manifest[name].slice(start, CHUNK).to_pylist():
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
    mask_ids = list_images(masks, flag, skipped={})["id"]
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


def _require_no_unpaired(ids: list[str], kind: str, lack: str, where: str) -> None:
    if ids:
        shown = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
        raise InputError(
            f"{len(ids)} {kind}{'s' * (len(ids) > 1)} {lack}: {shown}; add the missing files to {where}, or move these "
            "files away"
        )
