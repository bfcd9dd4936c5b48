"""The Oxford-IIIT Pet dataset as published: two archives to photos, masks and lists. No Ray, no training.

Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012; CC BY-SA 4.0. Addresses and MD5s are those that
torchvision.datasets.OxfordIIITPet has. Raw mask values: 1 pet, 2 background, 3 border.
"""

import itertools
import json
import re
import sys
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from petseg import storage
from petseg.data import decode
from petseg.data.labels import LabelMap
from petseg.data.pairs import decode_pair
from petseg.errors import InputError, JobError
from petseg.progress import Progress
from petseg.storage import download

MD5S = {
    "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
    "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
}

DONE_FILE = "oxford-pets.json"
"""Written last: which archives it was made from, and which pairs were left out, or are odd, and why."""

IMAGE_FOLDER, MASK_FOLDER = "images", "masks"

MAX_MEMBER_BYTES = 2**26
"""Of one file in an archive; the largest published one has 3 MB."""

MAX_TOTAL_BYTES = 2**32
"""Of all files in an archive; those published have 0.8 GB."""

_PHOTO = re.compile(r"(?:\./)?images/([A-Za-z_]+_\d+)\.jpg")
_TRIMAP = re.compile(r"(?:\./)?annotations/trimaps/([A-Za-z_]+_\d+)\.png")
_LIST = re.compile(r"(?:\./)?annotations/((?:trainval|test)\.txt)")

_CHECKED_AT = (128, 128)  # all of a file is decoded for that, too, but a JPEG in a third of the time
_THREADS = 4  # decoding gives way to other threads, and storage is waited for
_WAITING = 64


@dataclass(frozen=True)
class Found:
    """What the archives held."""

    pairs: int
    """Photos with their masks, as written."""
    left_out: dict[str, str]
    """Id of a pair that is not, and why."""
    odd: dict[str, str]
    """Id of a pair that is, and what is odd about it."""


def finished(output: str) -> Found | None:
    """What an earlier start has written to the end, if its files are still there."""
    if DONE_FILE not in storage.list_names(output):
        return None
    location = storage.join(output, DONE_FILE)
    content = storage.read_json(location)
    try:
        found = Found(int(content["pairs"]), dict(content["left_out"]), dict(content["odd"]))
        same = content["md5"] == MD5S
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{location}: was it edited? Delete it, and give the same command again") from error
    counts = [len(storage.list_names(storage.join(output, folder))) for folder in (IMAGE_FOLDER, MASK_FOLDER)]
    return found if same and counts == [found.pairs, found.pairs] else None


def fetch(url: str, cache: Path) -> None:
    """Download both archives into `cache`, as `download.fetch` does."""
    for name, md5 in MD5S.items():
        download.fetch(f"{url.rstrip('/')}/{name}", cache / name, md5)


def unpack(cache: Path, output: str) -> Found:
    """Write every pair that can be used below `output`, then the lists, then `DONE_FILE`.

    Both archives are looked through before anything is written. Raises `JobError` where one is no such archive or
    has a member that no dataset has (a path that leads out, a link, a device, a giant), and `InputError` where the
    folder holds files that are not the dataset's; `OSError` where it cannot be written.
    """
    photos = _look_through(cache / "images.tar.gz", _PHOTO)
    _look_through(cache / "annotations.tar.gz", _TRIMAP)
    trimaps, lists = _annotations(cache / "annotations.tar.gz")
    left_out = {name: "it has no trimap" for name in photos - trimaps.keys()}
    left_out |= {name: "it has no photo" for name in trimaps.keys() - photos}
    paired = photos & trimaps.keys()
    if not paired:
        raise JobError(f"{cache}: no photo with a trimap in the archives; is this the dataset?")
    _refuse_others(output, paired)
    storage.remove_leftovers(output)
    odd = {}
    progress = Progress(len(paired), 0, 0, sys.stdout)
    try:
        for name, refusal, oddity in _written(cache / "images.tar.gz", trimaps, output):
            left_out |= {name: refusal} if refusal else {}
            odd |= {name: oddity} if oddity else {}
            progress.add(1, 1 if refusal else 0)
    finally:
        progress.close()
    for name, content in lists.items():
        storage.write(storage.join(output, name), content, output)
    unusable = len(paired & left_out.keys())
    found = Found(len(paired) - unusable, dict(sorted(left_out.items())), dict(sorted(odd.items())))
    done = {"pairs": found.pairs, "left_out": found.left_out, "odd": found.odd, "md5": MD5S}
    storage.write(storage.join(output, DONE_FILE), (json.dumps(done, indent=2) + "\n").encode(), output)
    return found


def _annotations(archive: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The trimaps by id, and the official lists by file name; 25 MB, so they are held."""
    trimaps, lists = {}, {}
    for member, content in _members(archive):
        if name := _match(_TRIMAP, member):
            trimaps[name] = content.read()
        elif name := _match(_LIST, member):
            lists[name] = content.read()
    return trimaps, lists


def _written(archive: Path, trimaps: dict[str, bytes], output: str) -> Iterator[tuple[str, str, str]]:
    """Check and write each pair of an archive: (id, why it is left out, what is odd), in the archive's order."""
    waiting: deque[Future[tuple[str, str, str]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for member, content in _members(archive):
            name = _match(_PHOTO, member)
            if name in trimaps:
                waiting.append(pool.submit(_write_pair, name, content.read(), trimaps[name], output))
            while len(waiting) > _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write_pair(name: str, photo: bytes, mask: bytes, output: str) -> tuple[str, str, str]:
    photo_file = storage.join(output, IMAGE_FOLDER, f"{name}.jpg")
    mask_file = storage.join(output, MASK_FOLDER, f"{name}.png")
    try:
        kind = decode.content_format(photo)
        label_map = LabelMap.parse("", 3)
        _, class_ids = decode_pair(photo, mask, _CHECKED_AT, label_map, decode.MAX_TRAINING_PIXELS)
    except decode.DecodeError as error:
        for file in (photo_file, mask_file):  # of an earlier version, which knew less
            storage.remove_file(file)
        return name, f"its {'mask' if error.in_mask else 'photo'}: {error}", ""
    # The photo first: of what is killed between the two, training says that a mask is missing.
    storage.write(photo_file, photo, output)
    storage.write(mask_file, mask, output)
    oddities = [f"its photo is a {kind}"] if kind != "JPEG" else []
    if len(np.unique(class_ids)) == 1:
        oddities.append("its mask is blank: one class everywhere")
    return name, "", "; ".join(oddities)


def _refuse_others(output: str, names: set[str]) -> None:
    """Other photos and masks in the same folders would be taken for the dataset's."""
    for folder, ending in ((IMAGE_FOLDER, ".jpg"), (MASK_FOLDER, ".png")):
        location = storage.join(output, folder)
        ours = {name + ending for name in names}
        others = [name for name in storage.list_names(location) if name not in ours]
        if others:
            raise InputError(
                f"--output {output}: {storage.join(location, others[0])} is not of the dataset; choose another folder"
            )


def _look_through(archive: Path, pattern: re.Pattern[str]) -> set[str]:
    """The ids of the members that match, once all members are seen to be harmless."""
    names = sorted(name for member, _ in _members(archive) if (name := _match(pattern, member)))
    twice = [one for one, other in itertools.pairwise(names) if one == other]
    if twice:
        raise JobError(f"{archive}: {twice[0]} is there twice; is this the dataset?")
    return set(names)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every file in an archive; each must be read before the next is asked for."""
    total = 0
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                total += member.size
                refusal = _refusal(member, total)
                if refusal:
                    raise JobError(f"{archive}: {member.name!r} {refusal}; nothing is unpacked. Is this the dataset?")
                content = tar.extractfile(member)
                if content is not None:
                    yield member.name, content
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise JobError(f"{archive}: cannot be unpacked: {error}; delete it, and give the same command again") from error


def _refusal(member: tarfile.TarInfo, total: int) -> str:
    """Why an archive with this member is not to be unpacked, whatever is taken from it; "" where it may be.

    The names written are ours, so that none could lead out; that these are looked at is the second lock.
    """
    try:
        tarfile.data_filter(member, "/petseg")  # a folder's name, to which nothing is written
    except tarfile.FilterError as error:
        return f"is not to be trusted ({error})"
    if member.name.startswith(("/", "\\")) or ".." in member.name.split("/"):
        return "leads out of the folder"
    if not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    if member.size > MAX_MEMBER_BYTES or total > MAX_TOTAL_BYTES:
        return f"has {member.size} bytes, {total} with those before it: more than the dataset"
    return ""


def _match(pattern: re.Pattern[str], member: str) -> str:
    found = pattern.fullmatch(member)
    return found[1] if found else ""
