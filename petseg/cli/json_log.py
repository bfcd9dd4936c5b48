"""Output of a job as JSON, one object per line, for programs that collect logs: `--log-format json`."""

import json
import sys
import threading
from datetime import UTC, datetime
from typing import Any

from petseg.config.base import LogFormat


def set_log_format(log_format: LogFormat, job: str) -> None:
    """Turn each line that is printed from now on into an object, if the format is "json". Ends with `cli.run`."""
    if log_format == "json":
        sys.stdout = _JsonLines(sys.stdout, job)


def is_json() -> bool:
    """Return True if the job's output is JSON."""
    return isinstance(sys.stdout, _JsonLines)


def log_event(event: str, **values: Any) -> None:
    """Write an object with these JSON values, if the job's output is JSON."""
    if isinstance(sys.stdout, _JsonLines):
        sys.stdout.log(event, values)


class _JsonLines:
    """Stream that writes each line of text as an object of the event "message"."""

    def __init__(self, stream: Any, job: str) -> None:
        self._stream, self._job = stream, job
        self._lock = threading.Lock()
        self._begun = threading.local()  # begins of lines: `print` writes the end of a line by itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """Return False: a program reads this."""
        return False

    def write(self, text: str) -> int:
        """Write the lines that this text completes."""
        *lines, self._begun.text = (getattr(self._begun, "text", "") + text).split("\n")
        for line in filter(None, lines):
            self.log("message", {"message": line})
        return len(text)

    def log(self, event: str, values: dict[str, Any]) -> None:
        """Write an object."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "job": self._job, "event": event, **values})
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()
