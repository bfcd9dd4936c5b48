"""Output to a terminal or a pipe that never ends a job: not by a closed pipe, and not by a character."""

import contextlib
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def require_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if the locale has another encoding.

    Names of files are UTF-8 on nearly all disks and in all object stores, whatever the locale is. The workers inherit
    the mode. Output keeps the terminal's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:backslashreplace")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """In the `with` block, drop what stdout cannot take: a job must not end because nobody reads its words any more."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would get this number, and native code writes to it
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
        return
    with contextlib.redirect_stdout(_Unfailing(sys.stdout)):
        yield


def one_line(text: str) -> str:
    """Return a text with every control character and line break escaped, as it is printed in one line."""
    return "".join(
        ascii(character)[1:-1] if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") else character
        for character in text
    )


class _Unfailing:
    """Stream that passes text on to another one, until that one fails."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropped_on_error():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropped_on_error():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropped_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # Replace the descriptor: text that is still buffered would fail again, at the latest when Python exits.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
