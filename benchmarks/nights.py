"""Nights of a prediction job: the photos that each one finds, and the files that its output may have meanwhile."""

import io
import os
import re
import sys
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from petseg import files, storage
from petseg.storage import sharded_output

Contents = dict[str, bytes]
"""{name: content} of files."""

BROKEN = b"broken"
"""Content of a photo that cannot be decoded."""


@dataclass(frozen=True)
class Night:
    """Photos that a job finds, and the flags that it is started with."""

    photos: Contents
    flags: list[str]


@dataclass
class Undisturbed:
    """Files of an undisturbed job before and after a night."""

    before: Contents
    after: Contents
    duration_s: float
    """Shortest time that the job of this night has taken."""


def make_nights(images: Path, append: bool, retry_errors: bool) -> list[Night]:
    """Return the nights of a round: what happens to the photos of a folder, and with which flags the job is started.

    In the first night, two photos are broken. For `retry_errors`, one is mended. For `append`, the last third of the
    photos is added, the other photo is mended, one is changed, one is broken, and one is gone.
    """
    whole = {path.name: path.read_bytes() for path in sorted(images.iterdir())}
    names = list(whole)
    del whole[names[3]]
    added = set(names[-(len(names) // 3) :] if append else ())
    broken = {names[1]: BROKEN, names[6]: BROKEN}
    nights = [Night({name: whole[name] for name in whole if name not in added} | broken, [])]
    if retry_errors:
        nights.append(Night(nights[0].photos | {names[1]: whole[names[1]]}, ["--retry-errors"]))
    if append:
        grown = whole | {names[10]: whole[names[11]], names[14]: BROKEN}
        del grown[names[18]]
        nights.append(Night(grown, ["--append", *nights[-1].flags]))
    return nights


def lay_out(photos: Contents, folder: str) -> None:
    """Make a folder hold these photos.

    The time of a file follows from its content, as its ETag does in S3. So a night finds the same versions each time.
    """
    for name in set(storage.list_names(folder)) - photos.keys():
        storage.remove_file(storage.join(folder, name))
    for name, content in photos.items():
        location = storage.join(folder, name)
        storage.write(location, content)
        if storage.is_local(location):
            seconds = zlib.crc32(content)
            os.utime(location, (seconds, seconds))


def check_files(found: Contents, expected: Undisturbed, is_at_rest: bool = False) -> None:
    """Exit if these cannot be the files of an output within a night. `is_at_rest` says that no driver changes them."""
    before, after = expected.before, expected.after
    wrong = {name for name, content in found.items() if content not in (before.get(name), after.get(name))}
    if files.PREDICTION_MANIFEST in wrong:  # it also marks the photos that have changed
        photos = [photos_of(state) for state in (found, before, after)]
        wrong -= {files.PREDICTION_MANIFEST} if photos[0] in photos[1:] else set()
    check(not wrong, f"{sorted(wrong)[:5]} are files of no undisturbed job")
    gone = (before.keys() & after.keys()) - found.keys() - {files.SUCCESS}
    check(not gone, f"{sorted(gone)[:5]} are gone")
    twice = [photo for photo, count in Counter(ids_of(found)).items() if count > 1]
    check(not twice, f"{twice[:5]} have two rows")
    if is_at_rest and files.SUCCESS in found:
        check(found in (before, after), f"{files.SUCCESS} is there, but the output is not whole")


def ids_of(found: Contents) -> list[str]:
    """Return the ids of all rows that a reader of `part-*.parquet` gets."""
    shards = [content for name, content in found.items() if re.fullmatch(r"part-.*\.parquet", name)]
    return [row_id for shard in shards for row_id in pq.read_table(io.BytesIO(shard), columns=["id"])["id"].to_pylist()]


def photos_of(found: Contents) -> list[dict[str, str]]:
    """Return id and location of the photos in the list of an output."""
    listed = found.get(files.PREDICTION_MANIFEST)
    return sharded_output.parse_arrow(listed).select(["id", "image"]).to_pylist() if listed else []


def contents(output: str) -> Contents:
    """Return the content of every file of an output.

    Leaves out files that contain its location or times, and temporary files.
    """
    if not storage.list_names(output):
        return {}
    others = (files.REPORT, files.CONFIG, "status.json")
    names = [name for name in storage.list_files(output) if name not in others]  # leaves out hidden files
    found = dict(zip(names, storage.read_each(storage.join(output, name) for name in names), strict=True))
    # Orphans of a killed driver may be replacing a file. It is complete a moment later.
    return {name: content for name, content in found.items() if isinstance(content, bytes)}


def check(held: bool, otherwise: str) -> None:
    if not held:
        sys.exit(f"FAILED: {otherwise}")
