"""Checks of the locations given to a job, made before it starts, and the messages if one is not usable."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from petseg import storage
from petseg.errors import STORAGE_ERRORS, InputError, JobError

RERUN = "finished work is kept: fix this and run the same command again"
"""Remedy of a job that can continue where it stopped."""

_NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gfs2", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs",
    "smb3", "virtiofs", "wekafs",
}  # fmt: skip


def is_own_disk(location: str) -> bool:
    """Return True if an absolute location is on a disk that only this machine can reach, judging by its mount type."""
    if not storage.is_local(location):
        return False
    path, kind, longest = os.path.realpath(location), "", -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mounted = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        inside = f"{path}/".startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= longest:  # of equal mount points, the last one hides the others
            kind, longest = after.split(" ")[0], len(mounted)
    return not (kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse"))


def require_no_overlap(output: str, sources: Mapping[str, str], folders: Iterable[str] = ()) -> None:
    """Raise `InputError` if the output and a source overlap.

    `sources` maps flags to the absolute locations that are read. The output must not lie in a source. A source must not
    lie in one of `folders`, the folders of the output that a job fills with pictures.
    """
    for flag, source in sources.items():
        if f"{output}/".startswith(f"{source}/"):
            raise InputError(
                f"--output {output}: it is inside {flag}, so its files would be read as input; choose another folder"
            )
        if any(f"{source}/".startswith(f"{output}/{folder}/") for folder in folders):
            raise InputError(
                f"{flag} {source}: it is in a folder where --output {output} writes pictures; choose another output"
            )


def require_readable(locations: Iterable[str], what: str) -> None:
    """Raise `InputError`, beginning with `what`, if access is denied to all of these files in an object store.

    In that case the permission to read is missing, and no single file is the cause. Local files are not checked,
    because each has its own permissions.
    """
    remote = [location for location in locations if not storage.is_local(location)]
    denied = [content for content in storage.read_each(remote) if isinstance(content, PermissionError)]
    if remote and len(denied) == len(remote):
        raise InputError(f"{what}: its files cannot be read: {storage.reason(denied[0])}; is s3:GetObject allowed?")


@contextlib.contextmanager
def translate_write_errors(output: str, flag: str = "--output", remedy: str = RERUN) -> Iterator[None]:
    """Turn an error of storage into `JobError`, which says that the output of `flag` cannot be written."""
    try:
        yield
    except STORAGE_ERRORS as error:
        raise JobError(f"{flag} {output}: cannot be written: {storage.reason(error)}; {remedy}") from error


def require_writable(folder: str, flag: str) -> None:
    """Raise `InputError`, naming `flag`, if a folder cannot be created or written to. Creates nothing."""
    if not storage.is_local(folder):
        with storage.as_input_error(f"{flag} {folder}: cannot be written"):
            store, path = storage.remote(folder)
            store.require_writable(path)
        return
    parent = Path(folder)
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{flag} {folder}: {parent} is not a folder; choose another location")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {folder}: no permission to write in {parent}; choose another location")
