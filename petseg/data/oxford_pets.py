"""Unpack the Oxford-IIIT Pet dataset as published: from two archives to photos, masks and lists. No Ray, no training.

Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012; CC BY-SA 4.0. Addresses and MD5s are those of
torchvision.datasets.OxfordIIITPet. Raw mask values: 1 pet, 2 background, 3 border.
"""

import itertools
import json
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from petseg import files, storage
from petseg.config.base import MAX_PIXELS
from petseg.config.classes import ClassesConfig
from petseg.data import decode
from petseg.data.classes import write_classes
from petseg.data.image_file import DecodeError
from petseg.data.labels import LabelMap
from petseg.data.pairs import decode_pair
from petseg.errors import InputError, JobError
from petseg.lookahead import map_ahead
from petseg.progress import Progress
from petseg.storage import download

MD5S = {
    "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
    "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
}

DONE_FILE = "oxford-pets.json"
"""Name of the file that is written last.

It holds the archives' MD5s, the number of pairs, and the pairs that were left out or are odd, each with the reason.
"""

IMAGE_FOLDER, MASK_FOLDER = "images", "masks"

CLASSES = ClassesConfig(
    classes=("pet", "background", "border"),
    label_map="1:0,2:1,3:2",
    palette=((233, 116, 81), (33, 41, 60), (250, 224, 120)),
)
"""Meaning of the masks' raw values. It is written beside them."""

MAX_MEMBER_BYTES = 2**26
"""Largest size of one file in an archive; the largest published file has 3 MB."""

MAX_TOTAL_BYTES = 2**32
"""Largest total size of the files in an archive; the published files have 0.8 GB."""

_PHOTO = re.compile(r"(?:\./)?images/([A-Za-z_]+_\d+)\.jpg")
_TRIMAP = re.compile(r"(?:\./)?annotations/trimaps/([A-Za-z_]+_\d+)\.png")
_LIST = re.compile(r"(?:\./)?annotations/((?:trainval|test)\.txt)")

_CHECKED_AT = (128, 128)  # checks the whole file, too; a JPEG takes a third of the time
_THREADS = 4  # decoding releases the GIL, and threads wait for storage
_MAX_QUEUED = 64


@dataclass(frozen=True)
class Unpacked:
    """The findings about the pairs in the archives."""

    pairs: int
    """Number of pairs that were written."""
    skipped: dict[str, str]
    """Maps the id of each pair that was not written to the reason."""
    warnings: dict[str, str]
    """Maps the id of each pair that was written, but is odd, to what is odd about it."""


def finished(output: str) -> Unpacked | None:
    """Return the findings of an earlier run, if it finished with these archives and its files are still there.

    Raises `InputError` if `DONE_FILE` cannot be used.
    """
    if DONE_FILE not in storage.list_names(output):
        return None
    location = storage.join(output, DONE_FILE)
    content = storage.read_json(location)
    try:
        unpacked = Unpacked(int(content["pairs"]), dict(content["left_out"]), dict(content["odd"]))
        same_archives = content["md5"] == MD5S
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{location}: was it edited? Delete it and run the same command again") from error
    names = [storage.list_names(storage.join(output, folder)) for folder in (IMAGE_FOLDER, MASK_FOLDER)]
    counts = [len(set(found_in) - {files.CLASSES}) for found_in in names]
    return unpacked if same_archives and counts == [unpacked.pairs, unpacked.pairs] else None


def fetch(url: str, cache: Path) -> None:
    """Download both archives into `cache`, as `download.fetch` does."""
    for name, md5 in MD5S.items():
        download.fetch(f"{url.rstrip('/')}/{name}", cache / name, md5)


def unpack(cache: Path, output: str) -> Unpacked:
    """Write every usable pair below `output`, then the lists, then `DONE_FILE`.

    Both archives are scanned before anything is written. Raises `JobError` if one cannot be unpacked or has a member
    that the dataset does not have (a path that leads out of the folder, a link, a device, a giant). Raises `InputError`
    if the folder holds files that are not the dataset's, and `OSError` if it cannot be written.
    """
    photos = _scan_archive(cache / "images.tar.gz", _PHOTO)
    _scan_archive(cache / "annotations.tar.gz", _TRIMAP)
    trimaps, lists = _read_annotations(cache / "annotations.tar.gz")
    skipped = {name: "it has no trimap" for name in photos - trimaps.keys()}
    skipped |= {name: "it has no photo" for name in trimaps.keys() - photos}
    paired = photos & trimaps.keys()
    if not paired:
        raise JobError(f"{cache}: no photo with a trimap in the archives; is this the dataset?")
    _require_no_other_files(output, paired)
    storage.remove_leftovers(output)
    warnings = {}
    progress = Progress(len(paired), 0, 0, sys.stdout)
    try:
        for name, reason, warning in _write_pairs(cache / "images.tar.gz", trimaps, output):
            skipped |= {name: reason} if reason else {}
            warnings |= {name: warning} if warning else {}
            progress.add(1, 1 if reason else 0)
    finally:
        progress.close()
    write_classes(storage.join(output, MASK_FOLDER), CLASSES)
    for name, content in lists.items():
        storage.write(storage.join(output, name), content, output)
    unusable = len(paired & skipped.keys())
    unpacked = Unpacked(len(paired) - unusable, dict(sorted(skipped.items())), dict(sorted(warnings.items())))
    done = {"pairs": unpacked.pairs, "left_out": unpacked.skipped, "odd": unpacked.warnings, "md5": MD5S}
    storage.write(storage.join(output, DONE_FILE), (json.dumps(done, indent=2) + "\n").encode(), output)
    return unpacked


def _read_annotations(archive: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return (trimaps by id, official lists by file name). They take 25 MB, so memory can hold them."""
    trimaps, lists = {}, {}
    for member, content in _iter_members(archive):
        if name := _match_id(_TRIMAP, member):
            trimaps[name] = content.read()
        elif name := _match_id(_LIST, member):
            lists[name] = content.read()
    return trimaps, lists


def _write_pairs(archive: Path, trimaps: dict[str, bytes], output: str) -> Iterator[tuple[str, str, str]]:
    """Check and write each pair of an archive. Yield (id, why it is left out, what is odd) in the archive's order."""
    members = ((_match_id(_PHOTO, member), content) for member, content in _iter_members(archive))
    photos = ((name, content.read()) for name, content in members if name in trimaps)

    def write(named: tuple[str, bytes]) -> tuple[str, str, str]:
        name, photo = named
        return _write_pair(name, photo, trimaps[name], output)

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from map_ahead(pool, write, photos, _MAX_QUEUED)


def _write_pair(name: str, photo: bytes, mask: bytes, output: str) -> tuple[str, str, str]:
    photo_file = storage.join(output, IMAGE_FOLDER, f"{name}.jpg")
    mask_file = storage.join(output, MASK_FOLDER, f"{name}.png")
    try:
        kind = decode.content_format(photo)
        label_map = LabelMap.parse(CLASSES.label_map, len(CLASSES.classes))
        class_ids = decode_pair(photo, mask, _CHECKED_AT, label_map, MAX_PIXELS, masks_upright=False).class_ids
    except DecodeError as error:
        for file in (photo_file, mask_file):  # an earlier version, which checked less, may have written it
            storage.remove_file(file)
        return name, f"its {'mask' if error.in_mask else 'photo'}: {error}", ""
    # The photo is written first: if the process is killed between the two, training reports a missing mask.
    storage.write(photo_file, photo, output)
    storage.write(mask_file, mask, output)
    warnings_found = [f"its photo is a {kind}"] if kind != "JPEG" else []
    if len(np.unique(class_ids)) == 1:
        warnings_found.append("its mask is blank: one class everywhere")
    return name, "", "; ".join(warnings_found)


def _require_no_other_files(output: str, names: set[str]) -> None:
    """Raise `InputError` if other files are in the two folders: they would be taken for the dataset's."""
    for folder, ending in ((IMAGE_FOLDER, ".jpg"), (MASK_FOLDER, ".png")):
        location = storage.join(output, folder)
        ours = {name + ending for name in names} | {files.CLASSES}
        others = [name for name in storage.list_names(location) if name not in ours]
        if others:
            raise InputError(
                f"--output {output}: {storage.join(location, others[0])} is not of the dataset; choose another folder"
            )


def _scan_archive(archive: Path, pattern: re.Pattern[str]) -> set[str]:
    """Return the ids of the members that match, after checking that all members are harmless and no id occurs twice."""
    names = sorted(name for member, _ in _iter_members(archive) if (name := _match_id(pattern, member)))
    repeated = [one for one, other in itertools.pairwise(names) if one == other]
    if repeated:
        raise JobError(f"{archive}: {repeated[0]} occurs twice; is this the dataset?")
    return set(names)


def _iter_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and content of every file in an archive. Read each content before asking for the next."""
    total = 0
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                total += member.size
                reason = _rejection_reason(member, total)
                if reason:
                    raise JobError(f"{archive}: {member.name!r} {reason}; nothing is unpacked. Is this the dataset?")
                content = tar.extractfile(member)
                if content is not None:
                    yield member.name, content
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise JobError(f"{archive}: cannot be unpacked: {error}; delete it and run the same command again") from error


def _rejection_reason(member: tarfile.TarInfo, total: int) -> str:
    """Return why an archive with this member must not be unpacked at all; "" if it may be.

    The names of written files do not come from the archive, so they cannot lead out of the folder. Checking the
    members' names is a second protection.
    """
    try:
        tarfile.data_filter(member, "/petseg")  # any folder's name; nothing is written to it
    except tarfile.FilterError as error:
        return f"is not to be trusted ({error})"
    if member.name.startswith(("/", "\\")) or ".." in member.name.split("/"):
        return "leads out of the folder"
    if not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    if member.size > MAX_MEMBER_BYTES or total > MAX_TOTAL_BYTES:
        return f"has {member.size} bytes, {total} with those before it: more than the dataset"
    return ""


def _match_id(pattern: re.Pattern[str], member: str) -> str:
    match = pattern.fullmatch(member)
    return match[1] if match else ""
