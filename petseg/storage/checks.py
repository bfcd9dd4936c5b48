"""What a job may do with the places that it was given, asked before it starts, and what it says where it may not."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from petseg import storage
from petseg.errors import InputError, JobError

_NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gfs2", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs",
    "smb3", "virtiofs", "wekafs",
}  # fmt: skip


def is_own_disk(location: str) -> bool:
    """Whether an absolute location is on a disk that only this machine has, as far as the system tells."""
    if not storage.is_local(location):
        return False
    path, kind, longest = os.path.realpath(location), "", -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mounted = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        inside = f"{path}/".startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= longest:  # the last of equals lies over the others
            kind, longest = after.split(" ")[0], len(mounted)
    return not (kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse"))


def refuse_overlap(output: str, sources: Mapping[str, str], folders: Iterable[str] = ()) -> None:
    """Raise `InputError` where an output lies in one of the places that are read (absolute locations, by flag), or one
    of these in a folder of the output, among `folders`, that a job fills with pictures.
    """
    for flag, source in sources.items():
        if f"{output}/".startswith(f"{source}/"):
            raise InputError(
                f"--output {output}: it lies in {flag}, so what is written would be taken for input; choose another"
            )
        if any(f"{source}/".startswith(f"{output}/{folder}/") for folder in folders):
            raise InputError(
                f"{flag} {source}: it lies where --output {output} puts its pictures; choose another output"
            )


def require_readable(locations: Iterable[str], what: str) -> None:
    """Raise `InputError`, beginning with `what`, where access to each of some files in an object store is denied: then
    it is the right to read that is missing, and not one file's fault. A disk has rights of its own for each.
    """
    remote = [location for location in locations if not storage.is_local(location)]
    denied = [content for content in storage.read_each(remote) if isinstance(content, PermissionError)]
    if remote and len(denied) == len(remote):
        raise InputError(f"{what}: its files cannot be read: {storage.reason(denied[0])}; is s3:GetObject allowed?")


@contextlib.contextmanager
def writing(output: str, flag: str = "--output") -> Iterator[None]:
    """Raise `JobError`, naming `flag`, where what is done within cannot be written to a job's output."""
    try:
        yield
    except OSError as error:
        raise JobError(cannot_write(output, error, flag)) from error


def cannot_write(output: str, error: OSError, flag: str = "--output") -> str:
    """What a job says when it cannot write its output."""
    return (
        f"{flag} {output}: cannot be written: {storage.reason(error)}; what is finished is kept: mend that, and give "
        "the same command again"
    )


def require_writable(folder: str, flag: str) -> None:
    """Raise `InputError`, naming `flag`, where a folder could not be made or written to; makes nothing."""
    if not storage.is_local(folder):
        with storage.refused(f"{flag} {folder}: cannot be written"):
            store, path = storage.remote(folder)
            store.require_writable(path)
        return
    parent = Path(folder)
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{flag} {folder}: {parent} is not a folder; choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {folder}: no permission to write in {parent}; choose another place")
