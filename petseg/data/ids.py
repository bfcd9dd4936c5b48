"""Ids of files: the names that all outputs get. Make a safe id of a name, and refuse ids that would collide."""

import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

from petseg import storage
from petseg.errors import InputError

OUTPUT_EXTENSIONS = (".jpg", ".png")
"""Extensions of the files that prediction writes, each named by an id."""

_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_UNSAFE = re.compile(rf"(?:^|(?<=/))/|(?:^|(?<=/))\.{{1,2}}(?=/|$)|[\\{_CONTROL}]")
"""An empty part of a path, a part "." or "..", a backslash, a control character, a line or paragraph separator."""


def safe_id(stem: str) -> str:
    """Return the id of a name without extension: in NFC, and safe as a part of a path and in one line of text.

    What is not safe is replaced by % and its code in hexadecimal, as in a URI. Otherwise an output could be written
    outside its folder on some system (CWE-22).
    """
    stem = unicodedata.normalize("NFC", stem)
    return _UNSAFE.sub(_escape, stem)


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def is_utf8(name: str) -> bool:
    """Return False for a name with lone surrogates, by which Python stands for bytes that are not UTF-8."""
    return name.isprintable() or not any("\ud800" <= character <= "\udfff" for character in name)


def require_unique_ids(files: pa.Table, folder: str, flag: str) -> None:
    """Raise `InputError` if two rows have one id. The rows are sorted by id, and `image` is a path below `folder`."""
    ids = files["id"].combine_chunks()
    equals_previous = pc.equal(ids[1:], ids[:-1])  # pyright: ignore[reportAttributeAccessIssue]
    first = pc.index(equals_previous, True).as_py()
    if first >= 0:
        others = pc.unique(ids[1:].filter(equals_previous)).to_pylist()[1:]  # pyright: ignore[reportAttributeAccessIssue]
        more = f"; also {', '.join(others[:4])}{', …' if len(others) > 4 else ''}" if others else ""
        one, other = files["image"][first : first + 2].to_pylist()
        raise InputError(
            f"{storage.join(folder, one)} and {storage.join(folder, other)}: two files with the same id ({ids[first]}"
            f"{more}); an id, the path without extension, must be unique in {flag}: rename one, or move it away"
        )


def require_no_nested_outputs(photos: pa.Table, folder: str, ids: list[str]) -> None:
    """Raise `InputError` if the output file of one id has the path of a folder that another id needs.

    For example, the id `a` writes the file a.png, and the id `a.png/b` needs a folder a.png.
    """
    above = {}
    for row_id in ids:
        parts = row_id.split("/")
        for depth in range(1, len(parts)):
            path = "/".join(parts[:depth])
            for ending in OUTPUT_EXTENSIONS:
                if path.endswith(ending):
                    above[path.removesuffix(ending)] = row_id
    for row_id in photos["id"].to_pylist() if above else ():
        if row_id in above:
            inside = storage.join(folder, above[row_id])
            raise InputError(
                f"{inside}: a folder in this path has the same name as an output of {row_id}; rename that folder, or "
                f"{row_id}"
            )


def require_safe_folder(folder: str, flag: str) -> None:
    """Raise `InputError` if the path of a folder cannot be kept in Arrow, or printed in one line."""
    if not is_utf8(folder) or re.search(f"[{_CONTROL}]", folder):
        raise InputError(
            f"{flag} {folder!r}: a path must not contain a control character, a line separator or bytes that are not "
            "UTF-8; rename the folder"
        )
